/*
 * probe.h
 *		The second connection, on which destinations that do not work are tried.
 */
#ifndef OUTBOX_PROBE_H
#define OUTBOX_PROBE_H

#include "breaker.h"
#include "broker.h"
#include "confirm.h"
#include "record.h"

typedef struct OutboxProbe
{
	OutboxBroker *broker;
	OutboxBreakers *breakers;
	OutboxRecorder *recorder;
	MemoryContext scratch;
	OutboxBreaker *breaker;		/* whose message is on the wire, NULL: none is */
	OutboxEntry entry;			/* that message */
	OutboxDestination route;	/* its exchange and routing key */
	uint64		next_tag;
	int64		suspect_id;		/* message on whose account the connection was closed */
	TimestampTz sent_at;		/* or since when it could have been answered */
	size_t		unsent;			/* bytes of output when last looked at */
	TimestampTz retry_at;		/* when to probe again if it has no answer */
} OutboxProbe;

extern OutboxProbe *outbox_probe_create(MemoryContext context, const char *connection_name,
										OutboxBreakers *breakers, OutboxRecorder *recorder);

/*
 * One turn, as of a broker; the connection goes where that of `publisher` is.
 * Unless `allowed`, or if no breaker is open, there is none. What was settled
 * is counted in `tally`.
 */
extern void outbox_probe_turn(OutboxProbe *probe, TimestampTz now, bool allowed,
							  const OutboxBroker *publisher, OutboxTally *tally);

/* When to send the next message, DT_NOEND: not now. */
extern TimestampTz outbox_probe_next(OutboxProbe *probe);

/* Within a session: send the message that is to be tried next. */
extern void outbox_probe_send(OutboxProbe *probe, TimestampTz now);

/* The latest moment of the next turn, as far as the connection is concerned. */
extern TimestampTz outbox_probe_deadline(OutboxProbe *probe);

/* The clock was set back. */
extern void outbox_probe_follow_clock(OutboxProbe *probe, TimestampTz back);

#endif							/* OUTBOX_PROBE_H */
