/*
 * batch.c
 *		Owns the batch: all messages that were read and not yet recorded.
 *
 *		An entry is appended when its message is read (publish.c), gets a delivery
 *		tag when it is sent, is settled when the broker has answered (confirm.c),
 *		and leaves when its fate is recorded (progress.c).  It leaves in the order it
 *		was read, so what is recorded is always a prefix.
 *
 *		Delivery tags count from 1 on each channel.  A tag leads to its entry by
 *		published[]; each tag belongs to another entry of the ring, so the span of
 *		tags in flight never exceeds the ring.
 *
 *		Ordering keys: at most outbox.in_flight_per_key entries of a key are in
 *		flight; the others wait in a list of the key and become ready one by one as
 *		those are confirmed.  If one is not confirmed but set aside, all that wait
 *		are set aside behind it, and so is whatever is read of that key until the
 *		table deferred, which then knows of the key, has been written.
 *
 *		Nothing here waits, sends or reads; nothing raises but out of memory.
 */
#include "pgcompat.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "batch.h"
#include "settings.h"

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
	batch->published = MemoryContextAlloc(context, OUTBOX_BATCH_SIZE * sizeof(uint64));
	batch->next_tag = batch->lowest_tag = 1;
	batch->gated = OUTBOX_NO_ENTRY;
	batch->first_ready = batch->last_ready = OUTBOX_NO_ENTRY;
	batch->keys = hash_create("outbox ordering keys", 256, &keys,
							  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	batch->from_deferred = hash_create("outbox deferred in flight", 256, &ids,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return batch;
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
		result->entries = result->in_flight = result->set_aside = 0;
		result->first_waiting = result->last_waiting = OUTBOX_NO_ENTRY;
	}
	return result;
}

bool
outbox_batch_key_set_aside(OutboxBatch *batch, OutboxBytes key)
{
	OutboxKey  *found = find_key(batch, key, false);

	return found != NULL && found->set_aside > 0;
}

uint64
outbox_batch_append(OutboxBatch *batch, const OutboxMessage *message,
					struct OutboxWindow *window)
{
	uint64		index = batch->tail++;
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	Assert(batch->tail - batch->head <= OUTBOX_BATCH_SIZE);
	memset(entry, 0, sizeof(*entry));
	entry->id = message->id;
	entry->window = window;
	entry->segment = message->segment;
	entry->attempts = message->attempts;
	entry->deliver_at = message->deliver_at;
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

bool
outbox_batch_take_turn(OutboxBatch *batch, uint64 index)
{
	OutboxKey  *key = outbox_batch_entry(batch, index)->key;

	if (key == NULL)
		return true;
	if (key->first_waiting == OUTBOX_NO_ENTRY && key->in_flight < outbox_in_flight_per_key)
	{
		key->in_flight++;		/* its turn is taken; settle gives it back */
		return true;
	}
	append_to_list(batch, &key->first_waiting, &key->last_waiting, index);
	return false;
}

uint64
outbox_batch_take_ready(OutboxBatch *batch)
{
	return take_from_list(batch, &batch->first_ready);
}

void
outbox_batch_sent(OutboxBatch *batch, uint64 index, uint32 size)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	entry->outcome = OUTBOX_SENT;
	entry->returned = false;
	entry->size = size;
	entry->delivery_tag = batch->next_tag++;
	batch->published[entry->delivery_tag % OUTBOX_BATCH_SIZE] = index;
	batch->in_flight++;
	batch->in_flight_bytes += size;
}

uint64
outbox_batch_in_flight(OutboxBatch *batch, uint64 delivery_tag)
{
	uint64		index;
	OutboxEntry *entry;

	if (delivery_tag < batch->lowest_tag || delivery_tag >= batch->next_tag)
		return OUTBOX_NO_ENTRY;
	index = batch->published[delivery_tag % OUTBOX_BATCH_SIZE];
	if (index < batch->head)
		return OUTBOX_NO_ENTRY;
	entry = outbox_batch_entry(batch, index);
	if (entry->outcome != OUTBOX_SENT || entry->delivery_tag != delivery_tag)
		return OUTBOX_NO_ENTRY;
	return index;
}

/* Its turn in the key is over; whoever waited next gets it. */
static void
pass_on_turn(OutboxBatch *batch, OutboxKey *key)
{
	uint64		next;

	key->in_flight--;
	if (key->set_aside > 0)
	{
		while ((next = take_from_list(batch, &key->first_waiting)) != OUTBOX_NO_ENTRY)
		{
			outbox_batch_entry(batch, next)->outcome = OUTBOX_BEHIND;
			key->set_aside++;
		}
	}
	else if ((next = take_from_list(batch, &key->first_waiting)) != OUTBOX_NO_ENTRY)
	{
		key->in_flight++;
		append_to_list(batch, &batch->first_ready, &batch->last_ready, next);
	}
}

void
outbox_batch_settle(OutboxBatch *batch, uint64 index, OutboxOutcome outcome, const char *error)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	bool		had_turn = entry->outcome == OUTBOX_SENT || outcome == OUTBOX_UNSENDABLE ||
		outcome == OUTBOX_VANISHED;

	Assert(entry->outcome == OUTBOX_WAITING || entry->outcome == OUTBOX_SENT);
	if (entry->outcome == OUTBOX_SENT)
	{
		batch->in_flight--;
		batch->in_flight_bytes -= entry->size;
	}
	entry->outcome = outcome;
	if (error && entry->error == NULL)
		entry->error = MemoryContextStrdup(batch->context, error);
	if (entry->key)
	{
		if (outcome != OUTBOX_CONFIRMED && outcome != OUTBOX_VANISHED &&
			outcome != OUTBOX_SCHEDULED && outcome != OUTBOX_UNSENDABLE)
			entry->key->set_aside++;
		if (had_turn)
			pass_on_turn(batch, entry->key);
	}
	while (batch->lowest_tag < batch->next_tag &&
		   outbox_batch_in_flight(batch, batch->lowest_tag) == OUTBOX_NO_ENTRY)
		batch->lowest_tag++;
}

void
outbox_batch_unsend(OutboxBatch *batch)
{
	HASH_SEQ_STATUS keys;
	OutboxKey  *key;

	for (uint64 index = batch->head; index < batch->tail; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		if (entry->outcome != OUTBOX_SENT)
			continue;
		entry->outcome = OUTBOX_WAITING;
		entry->returned = false;
		if (entry->error)
			pfree(entry->error);
		entry->error = NULL;
	}
	hash_seq_init(&keys, batch->keys);
	while ((key = hash_seq_search(&keys)) != NULL)
	{
		key->in_flight = 0;
		key->first_waiting = OUTBOX_NO_ENTRY;
	}
	batch->first_ready = OUTBOX_NO_ENTRY;
	batch->resend = batch->head;
	batch->in_flight = 0;
	batch->in_flight_bytes = 0;
	batch->next_tag = batch->lowest_tag = 1;
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
		if (entry->outcome == OUTBOX_RETURNED || entry->outcome == OUTBOX_NACKED ||
			entry->outcome == OUTBOX_REJECTED || entry->outcome == OUTBOX_BEHIND)
			key->set_aside--;
		if (--key->entries == 0)
			(void) hash_search(batch->keys, key->key, HASH_REMOVE, NULL);
	}
	batch->resend = Max(batch->resend, batch->head);
}

int
outbox_batch_limit(OutboxBatch *batch)
{
	return batch->careful_until > batch->head ? 1 : outbox_in_flight_messages;
}
