/*
 * breaker.h
 *		Circuit breakers: destinations that do not work at the moment.
 */
#ifndef OUTBOX_BREAKER_H
#define OUTBOX_BREAKER_H

#include "lib/ilist.h"

#include "batch.h"
#include "pick.h"

typedef struct OutboxBreaker
{
	OutboxDestination destination;	/* must be first: hash key */
	bool		draining;		/* works again: what waits for it is on its way */
	bool		reported;		/* somebody was told that it is open */
	int			failures;		/* probes in a row */
	TimestampTz next_probe;		/* DT_NOEND while one is on the wire */
	uint64		last_set_aside; /* batch index behind the last entry that went to its queue */

	/* draining */
	dlist_node	node;			/* in OutboxBreakers.draining */
	int64		place;			/* its queue is taken up so far */
	bool		last_look;		/* what was set aside is recorded: if nothing is found, it is empty */
	int			allowance;		/* take up so many before they are recorded */
	int			taken;			/* of them */
	uint64		last_taken;		/* batch index behind the last of them */
	int			hold_ms;		/* for so long reading was held up for it last */
	TimestampTz next_hold;		/* and is not before */
} OutboxBreaker;

typedef struct OutboxBreakers
{
	struct HTAB *table;
	int			count;
	int			open;			/* of them not draining */
	dlist_head	draining;		/* OutboxBreaker, the one whose turn it is first */
	bool		drain_due;		/* a draining queue may have something to take up */
	TimestampTz hold_until;		/* read nothing new: a queue is about to be empty */
	OutboxBreaker *next;		/* see outbox_breakers_next() */
	bool		next_known;
} OutboxBreakers;

static inline bool
outbox_breakers_drain_due(OutboxBreakers *breakers)
{
	return breakers->drain_due && !dlist_is_empty(&breakers->draining);
}

extern OutboxBreakers *outbox_breakers_create(MemoryContext context);

/*
 * The breaker that stands in the way of a message, NULL if there is none.
 * What was `deferred` passes one that drains: it is older than what is in the queue
 * there, or part of it.
 */
extern OutboxBreaker *outbox_breaker_find(OutboxBreakers *breakers, const OutboxMessage *message,
										  bool deferred);

/* Where a message goes. */
extern OutboxDestination outbox_destination_of(const OutboxMessage *message, OutboxScope scope);

/*
 * A destination does not work: open its breaker, which may be open, or
 * draining. `refused`: the broker has said so, as opposed to nothing. NULL if
 * there are too many, and its messages are to be tried one by one.
 */
extern OutboxBreaker *outbox_breaker_open(OutboxBreakers *breakers,
										  const OutboxDestination *destination,
										  bool refused, TimestampTz now);

/* Within a session: open one for each queue in deferred that has none. */
extern void outbox_breakers_load(OutboxBreakers *breakers);

/* When its next probe is due. */
extern void outbox_breaker_set_next_probe(OutboxBreakers *breakers, OutboxBreaker *breaker,
										  TimestampTz next_probe);

/* A probe has failed, or succeeded. */
extern void outbox_breaker_failed(OutboxBreakers *breakers, OutboxBreaker *breaker,
								  TimestampTz now);
extern void outbox_breaker_drain(OutboxBreakers *breakers, OutboxBreaker *breaker);

/* Nothing waits for it any more. */
extern void outbox_breaker_remove(OutboxBreakers *breakers, OutboxBreaker *breaker);

/* The open breaker whose probe is due first, NULL if none is open. */
extern OutboxBreaker *outbox_breakers_next(OutboxBreakers *breakers);

/* The clock was set back: the times of the probes mean nothing any more. */
extern void outbox_breakers_forget_times(OutboxBreakers *breakers);

#endif							/* OUTBOX_BREAKER_H */
