/*
 * buffer.h
 *		A growing run of bytes with a mark: what lies before `sendable` may go
 *		to the socket, what lies behind it waits for the durability gate.
 *
 *		data[start .. sendable) may be sent, data[sendable .. end) may not yet.
 *
 *		reserve() and sending move the content inside the allocation: to mark a
 *		place, remember its distance from `end`, or set `sendable` to `end` at
 *		once.
 */
#ifndef OUTBOX_BUFFER_H
#define OUTBOX_BUFFER_H

typedef struct OutboxBuffer
{
	char	   *data;
	size_t		start;			/* first byte not yet sent */
	size_t		sendable;		/* first byte that may not be sent yet */
	size_t		end;			/* first free byte */
	size_t		size;			/* bytes allocated */
	MemoryContext context;		/* owns data */
} OutboxBuffer;

extern void outbox_buffer_init(OutboxBuffer *buffer, MemoryContext context);

/* Forget the content; give memory back if it has grown far beyond its use. */
extern void outbox_buffer_reset(OutboxBuffer *buffer);

/* Make room for `len` bytes behind `end` and return where they start; the
 * caller writes them and then adds what it used to `end`. */
extern char *outbox_buffer_reserve(OutboxBuffer *buffer, size_t len);

extern void outbox_buffer_append(OutboxBuffer *buffer, const void *data, size_t len);

#endif							/* OUTBOX_BUFFER_H */
