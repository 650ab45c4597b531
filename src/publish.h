/*
 * publish.h
 *		From storage into the broker's output.
 */
#ifndef OUTBOX_PUBLISH_H
#define OUTBOX_PUBLISH_H

#include "batch.h"
#include "broker.h"
#include "cursor.h"
#include "durable.h"

typedef struct OutboxPublisher
{
	OutboxBatch *batch;
	OutboxCursor *cursor;
	OutboxBroker *broker;
	OutboxGate	gate;
	MemoryContext scratch;		/* one message at a time; reset after each */
	bool		check_queues;	/* some ordering key has a queue in deferred */
} OutboxPublisher;

/* May what was read be sent?  Lets it go if so; nothing may be read while not. */
extern bool outbox_publish_gate_open(OutboxPublisher *publisher);

/* Are few enough in flight to send more?  Answers in runs, to refill in runs. */
extern bool outbox_publish_has_room(OutboxPublisher *publisher);

/* Entries that were read before are to be sent (again). */
extern bool outbox_publish_has_unsent(OutboxPublisher *publisher);

/*
 * Within a session (session.h): send what was read before and may go now, then
 * read on.  Returns the number of messages read from the segments.
 */
extern void outbox_publish_unsent(OutboxPublisher *publisher);
extern int	outbox_publish_fill(OutboxPublisher *publisher);

/*
 * Within a session: take up one message that fell due in deferred; `in_queue`
 * if it is in the queue of its key there. Returns false, and does nothing, if
 * there is no room.
 */
extern bool outbox_publish_deferred(OutboxPublisher *publisher, const OutboxMessage *message,
									bool in_queue);

/*
 * Within a session: shut the gate behind all that was appended in it,
 * `first_entry` being the batch's tail before. It may open at once.
 */
extern void outbox_publish_shut_gate(OutboxPublisher *publisher, uint64 first_entry);

#endif							/* OUTBOX_PUBLISH_H */
