/*
 * record.c
 *		Step 7 of a message's path: record what is settled.
 *
 *		One transaction, at most every RECORD_INTERVAL_MS: the settled entries
 *		at the front of the batch leave it; those that were not confirmed are
 *		moved to deferred or dead_letter; the new position is appended
 *		(progress.c). All of it happens or none: after a crash the worker
 *		begins again at the last position that was recorded, and finds nothing
 *		both set aside and yet to be sent.
 *
 *		Nothing is recorded before the broker has answered, and nothing beyond
 *		the durability gate (outbox_batch_head_settled()).
 *
 *		On entry: a session. Must never wait for a row that somebody else has
 *		locked.
 */
#include "pgcompat.h"

#include "catalog/pg_type.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dead_letter.h"
#include "deferred.h"
#include "faultpoint.h"
#include "progress.h"
#include "record.h"
#include "report.h"
#include "settings.h"

/* Not before so much time has passed since the last record. */
#define RECORD_INTERVAL_MS 200

/* Set aside, or delete from deferred, at most so many messages, and so much, in one transaction. */
#define MAX_ASIDE		1000
#define MAX_ASIDE_BYTES (32 * 1024 * 1024)

/* Try so often whether rows that an operator has locked are free again. */
#define LEFTOVER_INTERVAL_MS 5000

/* What one transaction does with the messages that were not confirmed. */
typedef struct AsideWork
{
	OutboxBreakers *breakers;
	OutboxAside insert[OUTBOX_SEGMENTS];	/* segment -> deferred */
	OutboxAside bury[OUTBOX_SEGMENTS];	/* segment -> dead_letter */
	OutboxAside update;			/* stay in deferred */
	OutboxAside bury_deferred;	/* deferred -> dead_letter */
	ArrayBuildState *confirmed; /* leave deferred */
	OutboxIds	locked;			/* rows of deferred that may be changed now */
	OutboxIds	present;		/* rows of deferred that are there */
	List	   *kept;			/* OutboxEntry: the others */
	int			count;
	TimestampTz now;
} AsideWork;

/* Does a refused message get another attempt?  A nack blames the queue, not it. */
static bool
gets_another_attempt(const OutboxEntry *entry)
{
	return entry->outcome == OUTBOX_NACKED ||
		(entry->outcome != OUTBOX_UNSENDABLE && entry->attempts + 1 < outbox_max_attempts);
}

/*
 * A nack is about the queue: what else goes there need not be tried before it
 * takes messages again. False if there is no breaker for it, and the message is
 * to be tried by itself.
 */
static bool
open_breaker(AsideWork *work, const OutboxEntry *entry)
{
	OutboxMessage message;
	OutboxFetch *fetch = outbox_message_fetch(entry->segment, entry->id, &message);
	OutboxDestination destination;
	OutboxBreaker *breaker;

	if (fetch == NULL)
		return false;
	destination = outbox_destination_of(&message, OUTBOX_SCOPE_ROUTE);
	outbox_message_fetch_end(fetch);
	breaker = outbox_breaker_open(work->breakers, &destination, true, work->now);
	if (breaker == NULL)
		return false;
	outbox_report_unavailable(breaker, entry->error);
	return true;
}

static const char *
waiting_reason(const OutboxEntry *entry)
{
	return entry->unavailable == OUTBOX_SCOPE_EXCHANGE ? "exchange" : "stalled";
}

/*
 * Decide where one settled entry goes. Called in the order of the batch, which
 * is the order in which places in the queues are given; what is in a queue
 * already keeps its place.
 */
static void
classify(AsideWork *work, const OutboxEntry *entry)
{
	bool		from_deferred = entry->segment == OUTBOX_DEFERRED;
	OutboxAside *defer = from_deferred ? &work->update : &work->insert[entry->segment];
	OutboxAside *bury = from_deferred ? &work->bury_deferred : &work->bury[entry->segment];
	int			attempts = entry->attempts + 1;

#define NEW_PLACE() (entry->in_queue ? 0 : outbox_deferred_new_place())
	switch ((OutboxOutcome) entry->outcome)
	{
		case OUTBOX_CONFIRMED:
			if (!from_deferred)
				return;
			work->confirmed = accumArrayResult(work->confirmed, Int64GetDatum(entry->id),
											   false, INT8OID, CurrentMemoryContext);
			break;
		case OUTBOX_NACKED:
			if (open_breaker(work, entry))
			{
				outbox_aside_add(defer, entry->id, waiting_reason(entry), DT_NOEND,
								 attempts, entry->error, NEW_PLACE());
				break;
			}
			/* FALLTHROUGH */
		case OUTBOX_RETURNED:
		case OUTBOX_REJECTED:
		case OUTBOX_UNSENDABLE:
			if (gets_another_attempt(entry))
				outbox_aside_add(defer, entry->id, "retry", outbox_deferred_retry_at(work->now, attempts),
								 attempts, entry->error, NEW_PLACE());
			else
				outbox_aside_add(bury, entry->id, "", DT_NOEND, attempts, entry->error, 0);
			break;
		case OUTBOX_SCHEDULED:
			/* Never due in the past: see outbox_pick_due(). */
			outbox_aside_add(defer, entry->id, "scheduled", Max(entry->deliver_at, work->now),
							 0, NULL, NEW_PLACE());
			break;
		case OUTBOX_BEHIND:
			outbox_aside_add(defer, entry->id, "behind", DT_NOEND, entry->attempts, NULL,
							 NEW_PLACE());
			break;
		case OUTBOX_UNAVAILABLE:
			outbox_aside_add(defer, entry->id, waiting_reason(entry), DT_NOEND,
							 entry->delivery_tag != 0 ? attempts : entry->attempts,
							 entry->error, NEW_PLACE());
			break;
		case OUTBOX_VANISHED:
			return;
		case OUTBOX_WAITING:
		case OUTBOX_SENT:
			elog(ERROR, "message " INT64_FORMAT " is not settled", entry->id);
	}
#undef NEW_PLACE
	work->count++;
}

/*
 * An entry from deferred: if its row cannot be had without waiting, it is kept
 * for another time, and not picked until then.
 */
static void
classify_deferred(OutboxRecorder *recorder, AsideWork *work, OutboxEntry *entry)
{
	if (outbox_ids_contain(&work->locked, entry->id))
		classify(work, entry);
	else if (outbox_ids_contain(&work->present, entry->id))
	{
		work->kept = lappend(work->kept, entry);
		return;
	}
	(void) hash_search(recorder->batch->from_deferred, &entry->id, HASH_REMOVE, NULL);
}

/* A copy that does not depend on the batch. */
static List *
append_copy(List *list, const OutboxEntry *entry)
{
	OutboxEntry *copy = palloc(sizeof(OutboxEntry));

	*copy = *entry;
	copy->key = NULL;
	if (copy->error)
		copy->error = pstrdup(copy->error);
	return lappend(list, copy);
}

static void
add_leftover(OutboxRecorder *recorder, const List *kept)
{
	MemoryContext old = MemoryContextSwitchTo(recorder->batch->context);
	ListCell   *lc;

	foreach(lc, kept)
		recorder->leftover = append_copy(recorder->leftover, lfirst(lc));
	MemoryContextSwitchTo(old);
}

/* Replace the leftover of earlier times, some of which `kept` points to. */
static void
keep_leftover(OutboxRecorder *recorder, const List *kept)
{
	List	   *earlier = recorder->leftover;
	ListCell   *lc;

	recorder->leftover = NIL;
	add_leftover(recorder, kept);
	foreach(lc, earlier)
	{
		OutboxEntry *entry = lfirst(lc);

		if (entry->error)
			pfree(entry->error);
		pfree(entry);
	}
	list_free(earlier);
}

void
outbox_record_add(OutboxRecorder *recorder, const OutboxEntry *entry)
{
	MemoryContext old = MemoryContextSwitchTo(recorder->batch->context);

	recorder->leftover = append_copy(recorder->leftover, entry);
	recorder->leftover_due = TimestampTzPlusMilliseconds(recorder->recorded_at,
														 RECORD_INTERVAL_MS);
	MemoryContextSwitchTo(old);
}

static void
carry_out(AsideWork *work, bool several_per_key)
{
	OutboxTouchedKeys touched = {NULL};

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		outbox_deferred_insert(i, &work->insert[i], &touched);
		outbox_dead_letter_insert(i, &work->bury[i]);
	}
	outbox_deferred_update(&work->update, &touched);
	outbox_dead_letter_bury(&work->bury_deferred, &touched);
	outbox_deferred_delete(work->confirmed, &touched);
	/* Last: now each queue is as it will be. */
	outbox_deferred_promote(&touched, several_per_key);
}

/*
 * Where the settled entries at the front end, as far as one transaction goes; *more: it
 * cannot hold all of them. The ids of those from deferred are collected.
 */
static uint64
end_of_settled(OutboxBatch *batch, ArrayBuildState **ids, bool *more)
{
	uint64		end = batch->head;
	int			count = 0;
	Size		bytes = 0;

	*more = false;
	while (end < batch->tail && end < batch->gated)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, end);

		if (entry->outcome <= OUTBOX_SENT)
			break;
		*more = count >= MAX_ASIDE || bytes >= MAX_ASIDE_BYTES;
		if (*more)
			break;
		if (entry->outcome != OUTBOX_CONFIRMED || entry->segment == OUTBOX_DEFERRED)
		{
			count++;
			bytes += entry->size;
		}
		if (entry->segment == OUTBOX_DEFERRED)
			*ids = accumArrayResult(*ids, Int64GetDatum(entry->id), false, INT8OID,
									CurrentMemoryContext);
		end++;
	}
	return end;
}

TimestampTz
outbox_record_due(OutboxRecorder *recorder)
{
	if (outbox_batch_head_settled(recorder->batch))
		return TimestampTzPlusMilliseconds(recorder->recorded_at, RECORD_INTERVAL_MS);
	return recorder->leftover != NIL ? recorder->leftover_due : DT_NOEND;
}

bool
outbox_record(OutboxRecorder *recorder, TimestampTz now)
{
	OutboxBatch *batch = recorder->batch;
	AsideWork	work = {.now = now, .breakers = recorder->breakers};
	ArrayBuildState *ids = NULL;
	ListCell   *lc;
	/* An operator may have locked very many: not all of them in each record. */
	bool		retry_leftover = recorder->leftover == NIL || recorder->leftover_due <= now;
	List	   *leftover = retry_leftover ? recorder->leftover : NIL;
	uint64		end;
	bool		more;

	OUTBOX_FAULTPOINT("record-before");
	foreach(lc, leftover)
		ids = accumArrayResult(ids, Int64GetDatum(((OutboxEntry *) lfirst(lc))->id),
							   false, INT8OID, CurrentMemoryContext);
	end = end_of_settled(batch, &ids, &more);
	if (ids != NULL)
		outbox_deferred_lock(ids, &work.locked, &work.present);

	foreach(lc, leftover)
		classify_deferred(recorder, &work, lfirst(lc));
	for (uint64 index = batch->head; index < end; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		if (entry->segment == OUTBOX_DEFERRED)
			classify_deferred(recorder, &work, entry);
		else
		{
			classify(&work, entry);
			outbox_cursor_settle(recorder->cursor, entry->window, entry->id);
		}
	}
	if (leftover != NIL)
		keep_leftover(recorder, work.kept);
	else
		add_leftover(recorder, work.kept);
	if (work.count > 0)
		carry_out(&work, batch->several_per_key);
	OUTBOX_FAULTPOINT("record-set-aside");
	outbox_cursor_position(recorder->cursor, &recorder->position);
	outbox_progress_store(&recorder->position);
	OUTBOX_FAULTPOINT("record-stored");

	while (batch->head < end)
		outbox_batch_pop(batch);
	/* What one transaction could not hold goes on at once. */
	recorder->recorded_at = more ? 0 : now;
	if (retry_leftover)
		recorder->leftover_due = TimestampTzPlusMilliseconds(now, LEFTOVER_INTERVAL_MS);
	return work.count > 0;
}
