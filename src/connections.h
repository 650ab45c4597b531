/*
 * connections.h
 *		The connections over which a worker publishes, outbox.connections of
 *		them, as the one thing that most others want to see.
 */
#ifndef OUTBOX_CONNECTIONS_H
#define OUTBOX_CONNECTIONS_H

#include "batch.h"
#include "broker.h"
#include "stall.h"

typedef struct OutboxConnection
{
	OutboxBroker *broker;
	OutboxChannel *channel;		/* of the batch: what is in flight on it */
	OutboxStall stall;
} OutboxConnection;

typedef struct OutboxConnections
{
	MemoryContext context;
	char		name[NAMEDATALEN + 32]; /* of the first; the others add a number */
	OutboxBatch *batch;
	int			count;
	OutboxConnection list[OUTBOX_CONNECTIONS_MAX];
} OutboxConnections;

/* With one, which is IDLE until it is configured. */
extern OutboxConnections *outbox_connections_create(MemoryContext context, const char *name,
													OutboxBatch *batch);

/*
 * The settings may have changed: connect where they say, as often as they say, or
 * not at all. What was in flight on a connection that is closed is unsent.
 */
extern void outbox_connections_configure(OutboxConnections *connections);

/* One turn of each, as of a broker. */
extern void outbox_connections_turn(OutboxConnections *connections, TimestampTz now);

/* One has been LOST, and the batch knows it: so are all. */
extern void outbox_connections_end_others(OutboxConnections *connections,
										  const OutboxConnection *lost);

/* The first leads: the others go where it is. */
static inline OutboxBroker *
outbox_connections_first(const OutboxConnections *connections)
{
	return connections->list[0].broker;
}

/* READY: all of them.  While only others are not, CHANNEL. */
extern OutboxBrokerState outbox_connections_state(const OutboxConnections *connections);

/* Any: it is the broker that is short of something. */
extern bool outbox_connections_blocked(const OutboxConnections *connections);

/* As of a broker; connected and heard from are all, or it does not count. */
extern const char *outbox_connections_broker_name(const OutboxConnections *connections);
extern TimestampTz outbox_connections_since(const OutboxConnections *connections);
extern bool outbox_connections_heard_from(const OutboxConnections *connections);

/* Bytes appended and not yet sent, on the one that has the fewest of them. */
extern size_t outbox_connections_least_unsent(const OutboxConnections *connections);

/* The latest moment of the next turn; DT_NOEND if there is none. */
extern TimestampTz outbox_connections_deadline(const OutboxConnections *connections);

/* The clock was set back. */
extern void outbox_connections_follow_clock(OutboxConnections *connections, TimestampTz back);

/* As outbox_broker_close() of each. */
extern void outbox_connections_close(OutboxConnections *connections);

#endif							/* OUTBOX_CONNECTIONS_H */
