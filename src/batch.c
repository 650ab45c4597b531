/*
 * batch.c
 *		Owns the batch: all messages that were read and not yet recorded.
 *
 *		An entry is appended when its message is read (publish.c), gets a
 *		delivery tag when it is sent, is settled when the broker has answered
 *		(confirm.c), and leaves when its fate is recorded (record.c). It
 *		leaves in the order it was read, so what is recorded is always a
 *		prefix.
 *
 *		There is a channel for each connection (connections.c). Delivery tags
 *		count from 1 on each. A tag leads to its entry by published[]. While
 *		the entry of the lowest tag in flight stays, the ring can move on by
 *		less than its size, so the tags in flight span less than twice that.
 *
 *		Ordering keys: an entry is sent when it has one of the
 *		outbox.in_flight_per_key turns of its key; the others wait in a list of
 *		the key and get the turns of those that are confirmed. If one is
 *		refused, all that wait are settled as OUTBOX_BEHIND, and so is whatever
 *		is read of that key until the table deferred, which then knows of the
 *		key, has been written. A key of which too many wait sends the rest
 *		there as well: it shall not fill the ring for all others.
 *
 *		Nothing here waits, sends or reads; nothing raises but out of memory.
 */
#include "pgcompat.h"

#include "utils/hsearch.h"
#include "access/detoast.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

#include "batch.h"
#include "settings.h"

#define PUBLISHED_SIZE (2 * OUTBOX_BATCH_SIZE)

/* So many may wait for a turn: of one key, and in all. */
#define WAITING_PER_KEY 1000
#define WAITING_IN_ALL	(OUTBOX_BATCH_SIZE / 2)
#define FEW_WAITING		4		/* of a key, while there is no room to send */

OutboxBatch *
outbox_batch_create(MemoryContext context)
{
	OutboxBatch *batch = MemoryContextAllocZero(context, sizeof(OutboxBatch));
	HASHCTL		keys = {
		.keysize = OUTBOX_KEY_SIZE,
		.entrysize = sizeof(OutboxKey),
		.hcxt = context
	};
	HASHCTL		ids = {
		.keysize = sizeof(int64),
		.entrysize = sizeof(int64),
		.hcxt = context
	};

	batch->context = context;
	batch->entries = MemoryContextAlloc(context, OUTBOX_BATCH_SIZE * sizeof(OutboxEntry));
	outbox_batch_set_channels(batch, 1);
	batch->gated = OUTBOX_NO_ENTRY;
	batch->first_ready = batch->last_ready = OUTBOX_NO_ENTRY;
	batch->keys = hash_create("outbox ordering keys", 256, &keys,
							  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	batch->from_deferred = hash_create("outbox deferred in flight", 256, &ids,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return batch;
}

void
outbox_batch_set_channels(OutboxBatch *batch, int count)
{
	Assert(batch->in_flight == 0);
	while (batch->channel_count > count)
		pfree(batch->channels[--batch->channel_count].published);
	while (batch->channel_count < count)
	{
		OutboxChannel *channel = &batch->channels[batch->channel_count];

		memset(channel, 0, sizeof(*channel));
		channel->number = batch->channel_count++;
		channel->published = MemoryContextAlloc(batch->context, PUBLISHED_SIZE * sizeof(uint64));
		channel->next_tag = channel->lowest_tag = 1;
	}
}

static OutboxKey *
find_key(OutboxBatch *batch, OutboxBytes key, bool create)
{
	char		name[OUTBOX_KEY_SIZE];
	bool		found;
	OutboxKey  *result;
	uint32		len = Min(key.len, OUTBOX_KEY_SIZE - 1);

	memcpy(name, key.data, len);
	name[len] = '\0';
	result = hash_search(batch->keys, name, create ? HASH_ENTER : HASH_FIND, &found);
	if (create && !found)
	{
		result->entries = result->turns = result->waiting = 0;
		result->refused = result->behind = 0;
		result->without_queue = 0;
		result->first_waiting = result->last_waiting = OUTBOX_NO_ENTRY;
	}
	return result;
}

OutboxKey *
outbox_batch_find_key(OutboxBatch *batch, OutboxBytes key)
{
	return find_key(batch, key, false);
}

bool
outbox_batch_key_is_blocked(OutboxBatch *batch, OutboxBytes key)
{
	OutboxKey  *found = outbox_batch_find_key(batch, key);

	return found != NULL && found->refused + found->behind > 0;
}

static bool
has_turn(const OutboxKey *key)
{
	return key->first_waiting == OUTBOX_NO_ENTRY && key->turns < outbox_in_flight_per_key;
}

bool
outbox_batch_would_wait(OutboxBatch *batch, OutboxBytes key)
{
	OutboxKey  *found = outbox_batch_find_key(batch, key);

	return found != NULL && !has_turn(found) && found->waiting < FEW_WAITING;
}

uint64
outbox_batch_append(OutboxBatch *batch, const OutboxMessage *message,
					struct OutboxWindow *window)
{
	uint64		index = batch->tail++;
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	if (batch->tail - batch->head > OUTBOX_BATCH_SIZE)
		elog(ERROR, "outbox batch is full");
	memset(entry, 0, sizeof(*entry));
	entry->id = message->id;
	entry->window = window;
	entry->segment = message->segment;
	entry->attempts = message->attempts;
	entry->deliver_at = message->deliver_at;
	entry->size = toast_raw_datum_size(message->payload);
	entry->outcome = OUTBOX_WAITING;
	entry->next_waiting = OUTBOX_NO_ENTRY;
	if (message->ordering_key.data)
	{
		entry->key = find_key(batch, message->ordering_key, true);
		entry->key->entries++;
	}
	if (message->segment == OUTBOX_DEFERRED)
		(void) hash_search(batch->from_deferred, &entry->id, HASH_ENTER, NULL);
	/* What is sent as it is read need not be looked at again. */
	batch->resend = batch->tail;
	return index;
}

/* Append to a list that is linked by next_waiting. */
static void
append_to_list(OutboxBatch *batch, uint64 *first, uint64 *last, uint64 index)
{
	outbox_batch_entry(batch, index)->next_waiting = OUTBOX_NO_ENTRY;
	if (*first == OUTBOX_NO_ENTRY)
		*first = index;
	else
		outbox_batch_entry(batch, *last)->next_waiting = index;
	*last = index;
}

static uint64
take_from_list(OutboxBatch *batch, uint64 *first)
{
	uint64		index = *first;

	if (index != OUTBOX_NO_ENTRY)
		*first = outbox_batch_entry(batch, index)->next_waiting;
	return index;
}

static void
give_turn(OutboxBatch *batch, OutboxEntry *entry)
{
	entry->has_turn = true;
	if (++entry->key->turns > 1)
		batch->several_per_key = true;
}

static void
settle_behind(OutboxEntry *entry)
{
	entry->outcome = OUTBOX_BEHIND;
	entry->key->behind++;
}

bool
outbox_batch_take_turn(OutboxBatch *batch, uint64 index)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	OutboxKey  *key = entry->key;

	if (key == NULL)
		return true;
	if (key->refused > 0)
		settle_behind(entry);
	else if (has_turn(key))
	{
		give_turn(batch, entry);
		return true;
	}
	else if (key->waiting >= WAITING_PER_KEY || batch->waiting >= WAITING_IN_ALL)
		settle_behind(entry);
	else
	{
		append_to_list(batch, &key->first_waiting, &key->last_waiting, index);
		key->waiting++;
		batch->waiting++;
	}
	return false;
}

uint64
outbox_batch_take_ready(OutboxBatch *batch)
{
	return take_from_list(batch, &batch->first_ready);
}

OutboxChannel *
outbox_batch_channel_for(OutboxBatch *batch, uint64 index)
{
	OutboxKey  *key = outbox_batch_entry(batch, index)->key;
	OutboxChannel *idlest = &batch->channels[0];

	if (batch->channel_count == 1)
		return idlest;
	if (key)
		return &batch->channels[hash_bytes((unsigned char *) key->key, strlen(key->key)) %
								batch->channel_count];
	for (int i = 1; i < batch->channel_count; i++)
	{
		if (batch->channels[i].in_flight < idlest->in_flight)
			idlest = &batch->channels[i];
	}
	return idlest;
}

void
outbox_batch_sent(OutboxBatch *batch, OutboxChannel *channel, uint64 index, uint32 size,
				  TimestampTz now)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	entry->outcome = OUTBOX_SENT;
	entry->returned = false;
	entry->size = size;
	entry->sent_at = now;
	entry->channel = channel->number;
	entry->sent_end = channel->sent_bytes += size;
	entry->delivery_tag = channel->next_tag++;
	channel->published[entry->delivery_tag % PUBLISHED_SIZE] = index;
	channel->in_flight++;
	batch->in_flight++;
	batch->in_flight_bytes += size;
}

uint64
outbox_batch_in_flight(OutboxBatch *batch, const OutboxChannel *channel, uint64 delivery_tag)
{
	uint64		index;
	OutboxEntry *entry;

	if (delivery_tag < channel->lowest_tag || delivery_tag >= channel->next_tag)
		return OUTBOX_NO_ENTRY;
	index = channel->published[delivery_tag % PUBLISHED_SIZE];
	if (index < batch->head)
		return OUTBOX_NO_ENTRY;
	entry = outbox_batch_entry(batch, index);
	if (entry->outcome != OUTBOX_SENT || entry->delivery_tag != delivery_tag)
		return OUTBOX_NO_ENTRY;
	return index;
}

uint64
outbox_batch_oldest_in_flight(OutboxBatch *batch, const OutboxChannel *channel)
{
	return channel->in_flight == 0 ? OUTBOX_NO_ENTRY :
		outbox_batch_in_flight(batch, channel, channel->lowest_tag);
}

/*
 * A queue that does not answer in time makes the broker stop reading, so what was
 * sent after the last one that was answered may not have been read at all: it
 * is suspected only if there is nothing before.
 */
void
outbox_batch_suspect(OutboxBatch *batch, const OutboxChannel *channel, TimestampTz sent_by,
					 OutboxScope scope)
{
	uint64		end = channel->lowest_tag < channel->highest_answered ?
		channel->highest_answered : channel->next_tag;

	for (uint64 tag = channel->lowest_tag; tag < end; tag++)
	{
		uint64		index = outbox_batch_in_flight(batch, channel, tag);

		if (index != OUTBOX_NO_ENTRY &&
			(outbox_batch_entry(batch, index)->sent_at <= sent_by || tag == channel->lowest_tag))
			outbox_batch_entry(batch, index)->suspect = scope;
	}
}

/* Its turn in the key is over; whoever waited next gets it. */
static void
pass_on_turn(OutboxBatch *batch, OutboxEntry *entry)
{
	OutboxKey  *key = entry->key;
	uint64		next;

	entry->has_turn = false;
	key->turns--;
	/* The setting may have been lowered: then nobody gets this one. */
	while ((key->refused > 0 || key->turns < outbox_in_flight_per_key) &&
		   (next = take_from_list(batch, &key->first_waiting)) != OUTBOX_NO_ENTRY)
	{
		key->waiting--;
		batch->waiting--;
		if (key->refused > 0)
			settle_behind(outbox_batch_entry(batch, next));
		else
		{
			give_turn(batch, outbox_batch_entry(batch, next));
			append_to_list(batch, &batch->first_ready, &batch->last_ready, next);
		}
	}
}

/* Its turn has come, but it has not been sent. */
static void
hold_back_ready(OutboxBatch *batch, OutboxKey *key)
{
	uint64		next = batch->first_ready;

	batch->first_ready = OUTBOX_NO_ENTRY;
	while (next != OUTBOX_NO_ENTRY)
	{
		uint64		index = next;
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		next = entry->next_waiting;
		if (entry->key != key)
		{
			append_to_list(batch, &batch->first_ready, &batch->last_ready, index);
			continue;
		}
		entry->has_turn = false;
		key->turns--;
		settle_behind(entry);
	}
}

/*
 * A message was refused: those of its key that come after it and are not on the
 * wire must not pass it, whether or not it is recorded by the time they could be
 * sent. Its turn may have come to the next, if another in flight was confirmed;
 * or some that were sent before are still to be sent again, and in no list yet.
 */
static void
hold_back_unsent(OutboxBatch *batch, uint64 refused)
{
	OutboxKey  *key = outbox_batch_entry(batch, refused)->key;

	if (key->turns > 1)
		hold_back_ready(batch, key);
	for (uint64 i = Max(batch->resend, refused + 1); i < batch->tail; i++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, i);

		if (entry->key == key && entry->outcome == OUTBOX_WAITING)
			settle_behind(entry);
	}
}

/* It was in flight, and is answered. */
static void
take_off_channel(OutboxBatch *batch, const OutboxEntry *entry)
{
	OutboxChannel *channel = &batch->channels[entry->channel];

	channel->highest_answered = Max(channel->highest_answered, entry->delivery_tag);
	channel->in_flight--;
	batch->in_flight--;
	batch->in_flight_bytes -= entry->size;
	while (channel->lowest_tag < channel->next_tag &&
		   outbox_batch_in_flight(batch, channel, channel->lowest_tag) == OUTBOX_NO_ENTRY)
		channel->lowest_tag++;
}

void
outbox_batch_settle(OutboxBatch *batch, uint64 index, OutboxOutcome outcome, const char *error)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	bool		was_sent = entry->outcome == OUTBOX_SENT;

	Assert(entry->outcome == OUTBOX_WAITING || entry->outcome == OUTBOX_SENT);
	entry->outcome = outcome;
	if (was_sent)
		take_off_channel(batch, entry);
	if (error && entry->error == NULL)
		entry->error = MemoryContextStrdup(batch->context, error);
	if (entry->key)
	{
		if (outbox_outcome_is_refusal(outcome))
		{
			entry->key->refused++;
			hold_back_unsent(batch, index);
		}
		else if (outcome == OUTBOX_BEHIND)
			entry->key->behind++;
		if (entry->has_turn)
			pass_on_turn(batch, entry);
	}
}

void
outbox_batch_settle_unavailable(OutboxBatch *batch, uint64 index, OutboxScope scope,
								const char *error)
{
	outbox_batch_entry(batch, index)->unavailable = scope;
	outbox_batch_settle(batch, index, OUTBOX_UNAVAILABLE, error);
}

/* Not the last entries, if nothing behind them is settled: they cost nothing to read again. */
void
outbox_batch_end_waiting(OutboxBatch *batch)
{
	uint64		end = batch->tail;

	while (end > batch->head && outbox_batch_entry(batch, end - 1)->outcome <= OUTBOX_SENT)
		end--;
	for (uint64 index = batch->head; index < end; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		if (entry->outcome == OUTBOX_WAITING && entry->key)
			settle_behind(entry);
	}
}

/*
 * What is on its way on another channel stays so, and keeps its turn. All that waits
 * asks for a turn once more, in the order of the batch.
 */
void
outbox_batch_unsend(OutboxBatch *batch, OutboxChannel *channel)
{
	HASH_SEQ_STATUS keys;
	OutboxKey  *key;

	hash_seq_init(&keys, batch->keys);
	while ((key = hash_seq_search(&keys)) != NULL)
	{
		key->turns = key->waiting = 0;
		key->first_waiting = OUTBOX_NO_ENTRY;
	}
	for (uint64 index = batch->head; index < batch->tail; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);
		bool		sent = entry->outcome == OUTBOX_SENT;

		if (sent && entry->channel != channel->number)
		{
			if (entry->has_turn)
				entry->key->turns++;
			continue;
		}
		entry->has_turn = false;
		if (!sent)
			continue;
		entry->outcome = OUTBOX_WAITING;
		entry->returned = false;
		if (entry->error)
			pfree(entry->error);
		entry->error = NULL;
		batch->in_flight--;
		batch->in_flight_bytes -= entry->size;
	}
	batch->waiting = 0;
	batch->first_ready = OUTBOX_NO_ENTRY;
	batch->resend = batch->head;
	channel->in_flight = 0;
	channel->sent_bytes = 0;
	channel->highest_answered = 0;
	channel->next_tag = channel->lowest_tag = 1;
}

bool
outbox_batch_head_settled(OutboxBatch *batch)
{
	return batch->head < batch->tail && batch->head < batch->gated &&
		outbox_batch_entry(batch, batch->head)->outcome > OUTBOX_SENT;
}

void
outbox_batch_pop(OutboxBatch *batch)
{
	OutboxEntry *entry = outbox_batch_entry(batch, batch->head++);
	OutboxKey  *key = entry->key;

	if (entry->error)
		pfree(entry->error);
	if (key)
	{
		if (outbox_outcome_is_refusal(entry->outcome))
			key->refused--;
		else if (entry->outcome == OUTBOX_BEHIND)
			key->behind--;
		if (--key->entries == 0)
			(void) hash_search(batch->keys, key->key, HASH_REMOVE, NULL);
	}
	batch->resend = Max(batch->resend, batch->head);
}

void
outbox_batch_follow_clock(OutboxBatch *batch, TimestampTz back)
{
	for (uint64 index = batch->head; index < batch->tail; index++)
		outbox_batch_entry(batch, index)->sent_at -= back;
}

int
outbox_batch_limit(OutboxBatch *batch)
{
	return batch->careful_until > batch->head ? 1 : outbox_in_flight_messages;
}
