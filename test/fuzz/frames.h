/*
 * frames.h
 *		Frames as a broker sends them: right, odd, or wrong on purpose.
 */
#ifndef FUZZ_FRAMES_H
#define FUZZ_FRAMES_H

#include "random.h"

typedef struct Bytes
{
	unsigned char *data;
	size_t		len;
	size_t		size;
} Bytes;

extern void put(Bytes *out, const void *data, size_t len);
extern void put_number(Bytes *out, uint64 value, int width);
extern void put_text(Bytes *out, const char *text, int length_bytes);
extern void put_random(Bytes *out, Random *random, size_t len);

/* A frame, or one with a method in it: begin, append what belongs in it, end. */
extern size_t frame_begin(Bytes *out, int type, int channel);
extern size_t method_begin(Bytes *out, int channel, int class_id, int method_id);
extern void frame_end(Bytes *out, size_t begun);

/* A table, with its length, of `depth` tables in each other. */
extern void put_nested_table(Bytes *out, int depth);

/* The answers of the handshake, in order. */
#define HANDSHAKE_ANSWERS 5
typedef struct Tune
{
	uint16		channel_max;
	uint32		frame_max;
	uint16		heartbeat;
} Tune;

extern void put_start(Bytes *out, Random *random, int depth);
extern void put_tune(Bytes *out, const Tune *tune);
extern void put_answer(Bytes *out, Random *random, int which, const Tune *tune);

extern void put_answer_to_publish(Bytes *out, bool ack, uint64 tag, bool multiple);
extern void put_close(Bytes *out, Random *random, int channel, int code, bool odd);
extern void put_blocked(Bytes *out, Random *random, bool blocked);
extern void put_flow(Bytes *out, bool active);
extern void put_heartbeat(Bytes *out);

/* basic.return with its content; the id 0 stands for a message without one. */
extern void put_return(Bytes *out, Random *random, int64 id, size_t body, uint32 frame_max, int depth);

/* Any frame that a broker may send at some time, with tags below `tags`. */
extern void put_any(Bytes *out, Random *random, uint64 tags);

/* Frames that are wrong, whatever the state of the connection. */
extern void put_oversized(Bytes *out, Random *random, uint32 frame_max);
extern void put_without_end(Bytes *out, Random *random);
extern void put_wrong_channel(Bytes *out, Random *random);
extern void put_absurd_length(Bytes *out, Random *random);
extern void put_unexpected_method(Bytes *out, Random *random);

/* Change, remove or insert a few bytes of what lies behind `from`. */
extern void mutate(Bytes *out, size_t from, Random *random);

/* A conversation for decode_fuzzer.c, right or nearly so. */
extern void put_fuzzer_input(Bytes *out, Random *random);

#endif							/* FUZZ_FRAMES_H */
