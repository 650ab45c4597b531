/*
 * publish.h
 *		From storage into the broker's output.
 */
#ifndef OUTBOX_PUBLISH_H
#define OUTBOX_PUBLISH_H

#include "batch.h"
#include "breaker.h"
#include "broker.h"
#include "connections.h"
#include "cursor.h"
#include "durable.h"

typedef struct OutboxPublisher
{
	OutboxBatch *batch;
	OutboxCursor *cursor;
	OutboxConnections *connections;
	OutboxGate	gate;
	OutboxBreakers *breakers;
	MemoryContext scratch;		/* one message at a time; reset after each */
	TimestampTz now;			/* of this turn */
	bool		check_queues;	/* some ordering key may have a queue in deferred */
	uint64		queues_version; /* counts the changes of them */
} OutboxPublisher;

#define OUTBOX_UNSENDABLE_TEXT \
	"its properties and headers do not fit into one frame of this broker (frame_max)"

/*
 * Within a session: encode a message into the output of a connection. False if
 * it fits into no frame of that broker; `scratch` is reset, and *size is the
 * number of bytes on the wire.
 */
extern bool outbox_publish_encode(OutboxBroker *broker, MemoryContext scratch,
								  const OutboxMessage *message, uint32 *size);

/* May what was read be sent?  Lets it go if so; nothing may be read while not. */
extern bool outbox_publish_gate_open(OutboxPublisher *publisher);

/*
 * Are few enough in flight, and on their way to the socket, to send more?  Answers
 * in runs, to refill in runs.
 */
extern bool outbox_publish_has_room(OutboxPublisher *publisher);

/* Deferred was changed, and with it perhaps which ordering keys have a queue there. */
extern void outbox_publish_queues_changed(OutboxPublisher *publisher);

/* Entries that were read before are to be sent (again). */
extern bool outbox_publish_has_unsent(OutboxPublisher *publisher);

/*
 * Within a session (session.h): send what was read before and may go now, then
 * read on.  Returns the number of messages read from the segments.
 */
extern void outbox_publish_unsent(OutboxPublisher *publisher);
extern int	outbox_publish_fill(OutboxPublisher *publisher);

/*
 * Within a session: take up what waits for destinations that work again, and
 * with `share` leave room for others. `all_recorded`: nothing but the batch is
 * still to be recorded.
 */
extern void outbox_publish_drain(OutboxPublisher *publisher, bool share, bool all_recorded);

/*
 * Within a session: take up one message of deferred; `in_queue` if it is in a
 * queue there. For outbox_pick_due(), with the publisher as its argument.
 */
extern OutboxTaken outbox_publish_deferred(void *publisher, const OutboxMessage *message,
										   bool in_queue);

/*
 * Within a session: shut the gate behind all that was appended in it,
 * `first_entry` being the batch's tail before. It may open at once.
 */
extern void outbox_publish_shut_gate(OutboxPublisher *publisher, uint64 first_entry);

#endif							/* OUTBOX_PUBLISH_H */
