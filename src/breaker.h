/*
 * breaker.h
 *		Circuit breakers: destinations that do not work at the moment.
 */
#ifndef OUTBOX_BREAKER_H
#define OUTBOX_BREAKER_H

#include "batch.h"
#include "deferred.h"

typedef struct OutboxBreaker
{
	OutboxDestination destination;	/* must be first: hash key */
	bool		draining;		/* works again: what waits for it is on its way */
	bool		reported;		/* somebody was told that it is open */
	int			failures;		/* probes in a row */
	TimestampTz next_probe;
	int64		place;			/* draining: its queue is taken up so far */
	uint64		last_set_aside; /* batch index behind the last entry that went to its queue */
} OutboxBreaker;

typedef struct OutboxBreakers
{
	struct HTAB *table;
	int			count;
	int			draining;
	bool		drain_due;		/* a draining queue may have something to take up */
} OutboxBreakers;

static inline bool
outbox_breakers_drain_due(const OutboxBreakers *breakers)
{
	return breakers->draining > 0 && breakers->drain_due;
}

extern OutboxBreakers *outbox_breakers_create(MemoryContext context);

/* The breaker that stands in the way of a message, NULL if there is none. */
extern OutboxBreaker *outbox_breaker_find(OutboxBreakers *breakers, const OutboxMessage *message);

/*
 * Its destination does not work: open the breaker, which may be open, or
 * draining. `refused`: the broker has said so, as opposed to nothing. NULL if
 * there are too many, and the message is to be tried as ever.
 */
extern OutboxBreaker *outbox_breaker_open(OutboxBreakers *breakers, const OutboxMessage *message,
										  OutboxScope scope, bool refused, TimestampTz now);

/* Within a session: open one for each queue in deferred that has none. */
extern void outbox_breakers_load(OutboxBreakers *breakers);

/* A probe has failed, or succeeded. */
extern void outbox_breaker_failed(OutboxBreaker *breaker, TimestampTz now);
extern void outbox_breaker_drain(OutboxBreakers *breakers, OutboxBreaker *breaker);

/* Nothing waits for it any more. */
extern void outbox_breaker_remove(OutboxBreakers *breakers, OutboxBreaker *breaker);

/* The open breaker other than `except` whose probe is due first, NULL if there is none. */
extern OutboxBreaker *outbox_breakers_next(OutboxBreakers *breakers, const OutboxBreaker *except);

/* The clock was set back: the times of the probes mean nothing any more. */
extern void outbox_breakers_probe_now(OutboxBreakers *breakers);

#endif							/* OUTBOX_BREAKER_H */
