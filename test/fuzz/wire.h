/*
 * wire.h
 *		The network between the broker code and the peer: one connection at a
 *		time, in memory.
 */
#ifndef FUZZ_WIRE_H
#define FUZZ_WIRE_H

#include "random.h"

typedef enum WireAnswer
{
	WIRE_ACCEPT,
	WIRE_REFUSE,
	WIRE_HANG					/* neither accepted nor refused */
} WireAnswer;

typedef struct WirePipe
{
	unsigned char *data;
	size_t		start;
	size_t		end;
	size_t		size;
} WirePipe;

typedef struct Wire
{
	Random	   *random;
	WireAnswer	next_answer;	/* to the next connect */
	size_t		capacity;		/* bytes the peer may leave unread */
	size_t		piece;			/* bytes moved by one call, 0: as many as fit */
	bool		unsteady;		/* calls are sometimes interrupted, or move nothing */

	int			fd;				/* -1: the worker's side is closed */
	int			connections;	/* so far */
	bool		hanging;
	int			connect_error;
	bool		eof;			/* the peer has closed its side */
	int			reset;			/* error number the worker shall see, 0: none */
	WirePipe	to_worker;
	WirePipe	to_peer;
	uint64		moved;			/* bytes ever moved, to see whether anything does */
} Wire;

extern Wire wire;

extern void wire_init(Random *random);
extern void wire_free(void);

/* For the peer */
extern void wire_say(const void *data, size_t len);
extern size_t wire_hear(void *data, size_t len);
extern void wire_close(void);
extern void wire_reset(void);

static inline size_t
pipe_used(const WirePipe *pipe)
{
	return pipe->end - pipe->start;
}

/* What a wait for the socket would tell the worker. */
static inline bool
wire_readable(void)
{
	return pipe_used(&wire.to_worker) > 0 || wire.eof || wire.reset != 0;
}

static inline bool
wire_writable(void)
{
	return pipe_used(&wire.to_peer) < wire.capacity || wire.eof || wire.reset != 0;
}

#endif							/* FUZZ_WIRE_H */
