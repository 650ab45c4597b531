/*
 * publish.c
 *		Step 5 of a message's path: from storage into the broker's output
 *		buffer.
 *
 *		A message is encoded while the transaction that reads it is open,
 *		straight into the buffer, and its payload detoasted just before: one
 *		message at a time is in memory twice. Sending is the broker's business
 *		and happens after the transaction; bytes behind OutboxBuffer.sendable
 *		stay until the durability gate (durable.c) has let them pass. Encoding
 *		keeps only so far ahead of the socket (OUTPUT_FULL): the broker works
 *		on what was sent while more is read, however large the messages are.
 *
 *		A message whose destination is known not to work (breaker.c) is set
 *		aside instead, whatever way it came.
 *
 *		Order: what was read before and is not settled (sent again after a
 *		connection was lost, or waiting for its turn in its ordering key) goes
 *		before anything new is read.
 *
 *		On entry: a session is open, all connections are ready, the gate is not
 *		shut.
 *		Must never wait.
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "deferred.h"
#include "faultpoint.h"
#include "properties.h"
#include "publish.h"
#include "report.h"
#include "settings.h"

/* Read at most so many rows in one transaction. */
#define MAX_ROWS_PER_SESSION 1000

/*
 * Messages that keep coming for a destination whose queue is nearly empty would
 * keep it from ever being so: read nothing for a moment, now and then.  Twice as long the
 * next time: the moment has to be longer than it takes the broker to confirm.
 */
#define HOLD_MIN_MS		300
#define HOLD_MAX_MS		5000
#define HOLD_EVERY		16		/* as long as that */

/*
 * Nothing more is encoded while each connection has so many bytes to send; when one
 * is down to OUTPUT_LOW, more is read.  That is still some, so that the broker has
 * work meanwhile.  One that is read slowly holds up no other, until it has all that
 * may be in flight.
 */
#define OUTPUT_FULL		((size_t) 1024 * 1024)
#define OUTPUT_LOW		(OUTPUT_FULL / 4)

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
		has_room_for_bytes(batch) &&
		outbox_connections_least_unsent(publisher->connections) <= OUTPUT_LOW;
}

static bool
may_send_one_more(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;

	return batch->in_flight < outbox_batch_limit(batch) && has_room_for_bytes(batch) &&
		outbox_connections_least_unsent(publisher->connections) < OUTPUT_FULL;
}

bool
outbox_publish_has_unsent(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;

	return batch->resend < batch->tail || batch->first_ready != OUTBOX_NO_ENTRY;
}

bool
outbox_publish_encode(OutboxBroker *broker, MemoryContext scratch,
					  const OutboxMessage *message, uint32 *size)
{
	OutboxBuffer *output = outbox_broker_output(broker);
	size_t		before = output->end - output->start;
	MemoryContext old = MemoryContextSwitchTo(scratch);
	bool		mandatory;
	struct amqp_basic_properties_t_ *properties;
	bytea	   *payload;
	bool		fits;

	properties = outbox_properties_build(message, &mandatory);
	payload = DatumGetByteaPP(message->payload);
	fits = outbox_amqp_put_publish(output, outbox_broker_frame_max(broker),
								   outbox_utf8(message->exchange),
								   outbox_utf8(message->routing_key),
								   mandatory, properties,
								   VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload));
	*size = output->end - output->start - before;
	MemoryContextSwitchTo(old);
	MemoryContextReset(scratch);
	return fits;
}

/* Encode the message of an entry; it is in flight from now on. */
static void
encode(OutboxPublisher *publisher, uint64 index, const OutboxMessage *message)
{
	OutboxChannel *channel = outbox_batch_channel_for(publisher->batch, index);
	OutboxBroker *broker = publisher->connections->list[channel->number].broker;
	uint32		size;

	if (outbox_publish_encode(broker, publisher->scratch, message, &size))
		outbox_batch_sent(publisher->batch, channel, index, size, publisher->now);
	else
		outbox_batch_settle(publisher->batch, index, OUTBOX_UNSENDABLE, OUTBOX_UNSENDABLE_TEXT);
	OUTBOX_FAULTPOINT("message-encoded");
}

/*
 * A message that is suspected: open the breaker of its destination. NULL if there
 * are too many; then it is to be tried again by itself, like one that was nacked.
 */
static OutboxBreaker *
open_breaker(OutboxPublisher *publisher, const OutboxMessage *message, OutboxScope scope,
			 const char *why)
{
	OutboxDestination destination = outbox_destination_of(message, scope);
	bool		refused = scope == OUTBOX_SCOPE_EXCHANGE;
	OutboxBreaker *breaker = outbox_breaker_open(publisher->breakers, &destination, refused,
												 publisher->now);

	if (breaker && refused)
		outbox_report_unavailable(breaker, why);
	return breaker;
}

/*
 * May a message be sent, as far as its destination is concerned?  If not, it is
 * set aside, to wait for that in deferred.
 */
static bool
destination_works(OutboxPublisher *publisher, uint64 index, const OutboxMessage *message)
{
	OutboxBatch *batch = publisher->batch;
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	OutboxScope suspect = entry->suspect;
	const char *refusal = suspect ? batch->channels[entry->channel].refusal : NULL;
	OutboxBreaker *breaker;

	entry->suspect = OUTBOX_SCOPE_NONE;
	breaker = suspect == OUTBOX_SCOPE_NONE ?
		outbox_breaker_find(publisher->breakers, message, entry->segment == OUTBOX_DEFERRED) :
		open_breaker(publisher, message, suspect, refusal);
	if (breaker)
	{
		breaker->last_set_aside = Max(breaker->last_set_aside, index + 1);
		outbox_batch_settle_unavailable(batch, index, breaker->destination.scope, refusal);
	}
	else if (suspect)
		outbox_batch_settle(batch, index, OUTBOX_NACKED, refusal);
	return entry->outcome == OUTBOX_WAITING;
}

/* Do the broker's words name this exchange? */
static bool
names_exchange(const char *words, OutboxBytes exchange)
{
	char		quoted[OUTBOX_NAME_SIZE + 16];

	if (exchange.len == 0)
		snprintf(quoted, sizeof(quoted), "exchange 'amq.default'");
	else
		snprintf(quoted, sizeof(quoted), "exchange '%.*s'", (int) exchange.len, exchange.data);
	return strstr(words, quoted) != NULL;
}

/*
 * A channel was closed because of an exchange, with many in flight. If the broker
 * named it, there is no need to find the culprit one by one: a guess that is wrong
 * does no harm (breaker.c).
 */
static void
find_culprit(OutboxPublisher *publisher, OutboxChannel *channel)
{
	OutboxBatch *batch = publisher->batch;

	channel->find_culprit = false;
	for (uint64 index = batch->head; index < batch->tail; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);
		OutboxMessage message;
		OutboxFetch *fetch;

		/* Those that had been sent have a tag still, and know the channel. */
		if (entry->outcome != OUTBOX_WAITING || entry->delivery_tag == 0 ||
			entry->channel != channel->number ||
			(fetch = outbox_message_fetch(entry->segment, entry->id, &message)) == NULL)
			continue;
		if (names_exchange(channel->refusal, outbox_utf8(message.exchange)))
		{
			entry->suspect = OUTBOX_SCOPE_EXCHANGE;
			batch->careful_until = batch->head;
		}
		outbox_message_fetch_end(fetch);
		if (entry->suspect)
			break;
	}
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
	if (destination_works(publisher, index, &message))
		encode(publisher, index, &message);
	outbox_gate_add(&publisher->gate, message.xid);
	outbox_message_fetch_end(fetch);
}

void
outbox_publish_queues_changed(OutboxPublisher *publisher)
{
	publisher->check_queues = true;
	publisher->queues_version++;
}

/*
 * Do earlier messages of an ordering key wait in deferred, as recorded?  That they do not
 * holds until the next record, and may take long to find: while somebody holds a snapshot
 * all that ever waited is in the way.  So it is not asked for each message.
 */
static bool
has_queue(OutboxPublisher *publisher, OutboxBytes name)
{
	OutboxKey  *key;

	if (!publisher->check_queues)
		return false;
	key = outbox_batch_find_key(publisher->batch, name);
	if (key != NULL && key->without_queue == publisher->queues_version)
		return false;
	if (outbox_deferred_has_queue(name))
		return true;
	if (key != NULL)
		key->without_queue = publisher->queues_version;
	return false;
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
	const char *key = entry->key ? entry->key->key : NULL;

	if (key && !entry->in_queue && has_queue(publisher, (OutboxBytes) {key, strlen(key)}))
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

	for (int i = 0; i < batch->channel_count; i++)
	{
		if (batch->channels[i].find_culprit)
			find_culprit(publisher, &batch->channels[i]);
	}
	while (may_send_one_more(publisher) && rows++ < MAX_ROWS_PER_SESSION &&
		   (index = outbox_batch_take_ready(batch)) != OUTBOX_NO_ENTRY)
	{
		send_again(publisher, index);
	}
	while (batch->resend < batch->tail && may_send_one_more(publisher) &&
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
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	entry->in_queue = in_queue;
	outbox_gate_add(&publisher->gate, message->xid);
	if (window != NULL && message->deliver_at > GetCurrentStatementStartTimestamp())
		outbox_batch_settle(batch, index, OUTBOX_SCHEDULED, NULL);
	else if (behind)
		outbox_batch_settle(batch, index, OUTBOX_BEHIND, NULL);
	else if (outbox_batch_take_turn(batch, index) &&
			 destination_works(publisher, index, message))
		encode(publisher, index, message);
}

/* Must a message that is not in deferred's queue of its key stay behind it? */
static bool
belongs_behind(OutboxPublisher *publisher, const OutboxMessage *message)
{
	return message->ordering_key.data != NULL &&
		(outbox_batch_key_is_blocked(publisher->batch, message->ordering_key) ||
		 has_queue(publisher, message->ordering_key));
}

OutboxTaken
outbox_publish_deferred(void *arg, const OutboxMessage *message, bool in_queue)
{
	OutboxPublisher *publisher = arg;
	OutboxBatch *batch = publisher->batch;

	/*
	 * What will wait for its turn needs no room in the output: without a few of
	 * those, a queue of large messages would go out one by one with a record in between.
	 */
	if (!outbox_batch_has_space(batch) ||
		(!may_send_one_more(publisher) &&
		 (message->ordering_key.data == NULL ||
		  !outbox_batch_would_wait(batch, message->ordering_key))))
		return OUTBOX_TAKEN_NOT;
	admit(publisher, message, NULL, in_queue,
		  !in_queue && belongs_behind(publisher, message));
	return outbox_batch_entry(batch, batch->tail - 1)->outcome <= OUTBOX_SENT ?
		OUTBOX_TAKEN : OUTBOX_TAKEN_ASIDE;
}

/*
 * Take up at most *budget messages that wait for one destination. True if it may
 * have more at once; if not, something has to be recorded before.
 */
static bool
drain_queue(OutboxPublisher *publisher, OutboxBreaker *breaker, bool all_recorded, int *budget)
{
	OutboxBatch *batch = publisher->batch;
	OutboxBreakers *breakers = publisher->breakers;
	OutboxPicked picked;
	bool		settled;

	if (breaker->taken > 0 && breaker->last_taken <= batch->head)
	{
		breaker->allowance = Min(breaker->allowance * 2, OUTBOX_BATCH_SIZE);
		breaker->taken = 0;
	}
	if (breaker->taken >= breaker->allowance)
		return false;
	picked = outbox_pick_waiting(&breaker->destination, &breaker->place,
								 Min(Min(*budget, MAX_ROWS_PER_SESSION), breaker->allowance - breaker->taken),
								 batch->from_deferred, outbox_publish_deferred, publisher);
	*budget = picked.full ? 0 : *budget - picked.count;
	breaker->taken += picked.count;
	if (picked.count > 0)
	{
		breaker->last_taken = batch->tail;
		breaker->last_look = false;
	}
	if (!picked.end)
		return true;

	/*
	 * What was set aside is in the queue once it is recorded, perhaps in an old place that
	 * this look has passed: it is the last look if that was so as it began. What was taken
	 * up comes back only by way of a new breaker.
	 */
	settled = all_recorded && breaker->last_set_aside <= batch->head;
	if (settled && breaker->last_look)
	{
		outbox_breaker_remove(breakers, breaker);
		breakers->hold_until = 0;
		return false;
	}
	breaker->place = 0;
	breaker->last_look = settled;
	if (settled)
		return true;
	if (all_recorded && breaker->next_hold <= publisher->now)
	{
		breaker->hold_ms = Min(Max(breaker->hold_ms * 2, HOLD_MIN_MS), HOLD_MAX_MS);
		breakers->hold_until = TimestampTzPlusMilliseconds(publisher->now, breaker->hold_ms);
		breaker->next_hold = TimestampTzPlusMilliseconds(publisher->now,
														 HOLD_EVERY * breaker->hold_ms);
	}
	return false;
}

void
outbox_publish_drain(OutboxPublisher *publisher, bool share, bool all_recorded)
{
	OutboxBatch *batch = publisher->batch;
	OutboxBreakers *breakers = publisher->breakers;
	int			queues = breakers->count - breakers->open;
	int			budget = outbox_batch_limit(batch) - batch->in_flight;
	bool		more = false;

	if (share)
		budget = Max(1, budget / 2);
	while (queues-- > 0 && budget > 0)
	{
		OutboxBreaker *breaker = dlist_head_element(OutboxBreaker, node, &breakers->draining);

		dlist_delete(&breaker->node);
		dlist_push_tail(&breakers->draining, &breaker->node);
		if (drain_queue(publisher, breaker, all_recorded, &budget))
			more = true;
	}
	breakers->drain_due = more || budget <= 0;
}

int
outbox_publish_fill(OutboxPublisher *publisher)
{
	OutboxBatch *batch = publisher->batch;
	OutboxMessage message;
	int			count = 0;

	if (!outbox_cursor_open(publisher->cursor))
		return 0;
	OUTBOX_FAULTPOINT("window-opened");
	while (may_send_one_more(publisher) && outbox_batch_has_space(batch) &&
		   count < MAX_ROWS_PER_SESSION && outbox_cursor_next(publisher->cursor, &message))
	{
		admit(publisher, &message, outbox_cursor_window(publisher->cursor), false,
			  belongs_behind(publisher, &message));
		count++;
	}
	outbox_cursor_close(publisher->cursor);
	OUTBOX_FAULTPOINT("window-read");
	return count;
}

bool
outbox_publish_gate_open(OutboxPublisher *publisher)
{
	OutboxConnections *connections = publisher->connections;

	if (publisher->batch->gated == OUTBOX_NO_ENTRY)
		return true;
	if (!outbox_gate_is_open(&publisher->gate))
		return false;
	for (int i = 0; i < connections->count; i++)
	{
		OutboxBuffer *output = outbox_broker_output(connections->list[i].broker);

		output->sendable = output->end;
	}
	publisher->batch->gated = OUTBOX_NO_ENTRY;
	OUTBOX_FAULTPOINT("gate-open");
	return true;
}

void
outbox_publish_shut_gate(OutboxPublisher *publisher, uint64 first_entry)
{
	/* Nothing was added: a standby that is away is of no concern. */
	if (!publisher->gate.added)
		return;
	OUTBOX_FAULTPOINT("gate-before-flush");
	outbox_gate_close(&publisher->gate);
	publisher->batch->gated = first_entry;
	OUTBOX_FAULTPOINT("gate-shut");
	(void) outbox_publish_gate_open(publisher);
}
