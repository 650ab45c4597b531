/*
 * publish.c
 *		Step 5 of a message's path: from storage into the broker's output
 *		buffer.
 *
 *		A message is encoded while the transaction that reads it is open,
 *		straight into the buffer, and its payload detoasted just before: one
 *		message at a time is in memory twice. Sending is the broker's business
 *		and happens after the transaction; bytes behind OutboxBuffer.sendable
 *		stay until the durability gate (durable.c) has let them pass.
 *
 *		Order: what was read before and is not settled (sent again after a
 *		connection was lost, or waiting for its turn in its ordering key) goes
 *		before anything new is read.
 *
 *		On entry: a session is open, the broker is ready, the gate is not shut.
 *		Must never wait.
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "deferred.h"
#include "properties.h"
#include "publish.h"
#include "settings.h"

/* Read at most so many rows in one transaction. */
#define MAX_ROWS_PER_SESSION 1000

static bool
has_room_for_bytes(OutboxBatch *batch)
{
	return batch->in_flight_bytes < (Size) outbox_in_flight_bytes * 1024;
}

bool
outbox_publish_has_room(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;

	/* A transaction for each confirm would cost more than it gains. */
	return (batch->in_flight == 0 || batch->in_flight <= outbox_batch_limit(batch) * 3 / 4) &&
		has_room_for_bytes(batch);
}

static bool
may_send_one_more(OutboxBatch *batch)
{
	return batch->in_flight < outbox_batch_limit(batch) && has_room_for_bytes(batch);
}

bool
outbox_publish_has_unsent(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;

	return batch->resend < batch->tail || batch->first_ready != OUTBOX_NO_ENTRY;
}

/* Encode one message into the output; it is in flight from now on. */
static void
encode(OutboxPublisher *publisher, uint64 index, const OutboxMessage *message)
{
	OutboxBuffer *output = outbox_broker_output(publisher->broker);
	size_t		before = output->end - output->start;
	MemoryContext old = MemoryContextSwitchTo(publisher->scratch);
	bool		mandatory;
	struct amqp_basic_properties_t_ *properties;
	bytea	   *payload;

	properties = outbox_properties_build(message, &mandatory);
	payload = DatumGetByteaPP(message->payload);
	if (outbox_amqp_put_publish(output, outbox_broker_frame_max(publisher->broker),
								outbox_utf8(message->exchange), outbox_utf8(message->routing_key),
								mandatory, properties,
								VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload)))
		outbox_batch_sent(publisher->batch, index, output->end - output->start - before);
	else
		outbox_batch_settle(publisher->batch, index, OUTBOX_UNSENDABLE,
							"its properties and headers do not fit into one frame of this broker (frame_max)");
	outbox_gate_add(&publisher->gate, message->xid);
	MemoryContextSwitchTo(old);
	MemoryContextReset(publisher->scratch);
}

/* Read an entry's message again by its key, and send it. */
static void
send_again(OutboxPublisher *publisher, uint64 index)
{
	OutboxEntry *entry = outbox_batch_entry(publisher->batch, index);
	OutboxMessage message;
	OutboxFetch *fetch = outbox_message_fetch(entry->segment, entry->id, &message);

	if (fetch == NULL)
	{
		outbox_batch_settle(publisher->batch, index, OUTBOX_VANISHED, NULL);
		return;
	}
	message.attempts = entry->attempts;
	encode(publisher, index, &message);
	outbox_message_fetch_end(fetch);
}

/* Does an earlier message of its key wait in deferred, as recorded? */
static bool
has_queue_before_it(OutboxPublisher *publisher, const OutboxKey *key)
{
	OutboxBytes name = {key->key, strlen(key->key)};

	return publisher->check_queues && outbox_deferred_has_queue(name);
}

/*
 * What is recorded left the batch at the front, so a queue in deferred is
 * always of messages before those in the batch, unless they were taken from
 * it.
 */
static void
try_again(OutboxPublisher *publisher, uint64 index)
{
	OutboxEntry *entry = outbox_batch_entry(publisher->batch, index);

	if (entry->key && !entry->in_queue && has_queue_before_it(publisher, entry->key))
		outbox_batch_settle(publisher->batch, index, OUTBOX_BEHIND, NULL);
	else if (outbox_batch_take_turn(publisher->batch, index))
		send_again(publisher, index);
}

void
outbox_publish_unsent(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;
	int			rows = 0;
	uint64		index;

	while (may_send_one_more(batch) && rows++ < MAX_ROWS_PER_SESSION &&
		   (index = outbox_batch_take_ready(batch)) != OUTBOX_NO_ENTRY)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		/* Another of several in flight of its key may have been refused meanwhile. */
		if (entry->key->refused > 0)
			outbox_batch_settle(batch, index, OUTBOX_BEHIND, NULL);
		else
			send_again(publisher, index);
	}
	while (batch->resend < batch->tail && may_send_one_more(batch) &&
		   rows++ < MAX_ROWS_PER_SESSION)
	{
		index = batch->resend++;
		if (outbox_batch_entry(batch, index)->outcome == OUTBOX_WAITING)
			try_again(publisher, index);
	}
}

/* A message just read: send it, or settle it at once. */
static void
admit(OutboxPublisher *publisher, const OutboxMessage *message,
	  OutboxWindow *window, bool in_queue, bool behind)
{
	OutboxBatch *batch = publisher->batch;
	uint64		index = outbox_batch_append(batch, message, window);

	outbox_batch_entry(batch, index)->in_queue = in_queue;
	if (window != NULL && message->deliver_at > GetCurrentStatementStartTimestamp())
		outbox_batch_settle(batch, index, OUTBOX_SCHEDULED, NULL);
	else if (behind)
		outbox_batch_settle(batch, index, OUTBOX_BEHIND, NULL);
	else if (outbox_batch_take_turn(batch, index))
	{
		encode(publisher, index, message);
		return;
	}
	outbox_gate_add(&publisher->gate, message->xid);
}

/* Must a message that is not in deferred's queue of its key stay behind it? */
static bool
belongs_behind(OutboxPublisher *publisher, const OutboxMessage *message)
{
	return message->ordering_key.data != NULL &&
		(outbox_batch_key_is_blocked(publisher->batch, message->ordering_key) ||
		 (publisher->check_queues && outbox_deferred_has_queue(message->ordering_key)));
}

bool
outbox_publish_deferred(OutboxPublisher *publisher, const OutboxMessage *message, bool in_queue)
{
	if (!may_send_one_more(publisher->batch) || !outbox_batch_has_space(publisher->batch))
		return false;
	admit(publisher, message, NULL, in_queue,
		  !in_queue && belongs_behind(publisher, message));
	return true;
}

int
outbox_publish_fill(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;
	OutboxMessage message;
	int			count = 0;

	if (!outbox_cursor_open(publisher->cursor))
		return 0;
	while (may_send_one_more(batch) && outbox_batch_has_space(batch) &&
		   count < MAX_ROWS_PER_SESSION && outbox_cursor_next(publisher->cursor, &message))
	{
		admit(publisher, &message, outbox_cursor_window(publisher->cursor), false,
			  belongs_behind(publisher, &message));
		count++;
	}
	outbox_cursor_close(publisher->cursor);
	return count;
}

bool
outbox_publish_gate_open(OutboxPublisher *publisher)
{
	OutboxBuffer *output;

	if (publisher->batch->gated == OUTBOX_NO_ENTRY)
		return true;
	if (!outbox_gate_is_open(&publisher->gate))
		return false;
	output = outbox_broker_output(publisher->broker);
	output->sendable = output->end;
	publisher->batch->gated = OUTBOX_NO_ENTRY;
	return true;
}

void
outbox_publish_shut_gate(OutboxPublisher *publisher, uint64 first_entry)
{
	outbox_gate_close(&publisher->gate);
	publisher->batch->gated = first_entry;
	(void) outbox_publish_gate_open(publisher);
}
