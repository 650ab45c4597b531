/*
 * progress.c
 *		Step 7 of a message's path: record what is settled.
 *
 *		One transaction, at most every OUTBOX_PROGRESS_INTERVAL_MS: the settled
 *		entries at the front of the batch leave it; those that were not confirmed are
 *		moved to deferred or dead_letter; the new position is appended.  All of it
 *		happens or none: after a crash the worker begins again at the last position
 *		that was recorded, and finds nothing both set aside and yet to be sent.
 *
 *		Nothing is recorded before the broker has answered, and nothing beyond the
 *		durability gate (outbox_batch_head_settled()).
 *
 *		Positions are appended to one of two small tables, and the other is emptied
 *		in turn: rows that are updated in place would pile up dead versions while a
 *		snapshot is held elsewhere.  The row with the highest number counts.
 *
 *		Commits with synchronous_commit = local (session.c): an absent standby must
 *		not stop the worker.
 */
#include "pgcompat.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "dead_letter.h"
#include "deferred.h"
#include "progress.h"
#include "settings.h"

/* Columns of outbox.progress_N. */
enum
{
	COL_NUMBER, COL_RECORDED_AT,
	COL_SETTLED,				/* three columns of a horizon */
	COL_WINDOW = COL_SETTLED + 3,	/* three, too, */
	COL_WINDOW_UPPER_ID = COL_WINDOW + 3,	/* and its fourth */
	COL_LAST_ID, COL_COUNT
};

/* Change tables when one has so many pages. */
#define TABLE_PAGES 16

/* Set aside at most so many messages, and so much, in one transaction. */
#define MAX_ASIDE		1000
#define MAX_ASIDE_BYTES (32 * 1024 * 1024)

/* Try so often whether rows that an operator has locked are free again. */
#define LEFTOVER_INTERVAL_MS 5000

static const char *const table_names[2] = {"progress_0", "progress_1"};
static const char *const index_names[2] = {"progress_0_pkey", "progress_1_pkey"};

/* ---- reading ---- */

/* A horizon is three columns: last_id, next_xid, snapshot. */
static OutboxHorizon
horizon_from_columns(const Datum *values)
{
	OutboxHorizon horizon;

	horizon.last_id = DatumGetInt64(values[0]);
	horizon.next_xid = U64FromFullTransactionId(DatumGetFullTransactionId(values[1]));
	horizon.snapshot = outbox_snapshot_from_datum(values[2]);
	horizon.upper_id = horizon.last_id;
	return horizon;
}

/* Replace *progress by the newest row of a table, if that is newer. */
static void
load_table(int table, Snapshot snapshot, OutboxProgress *progress)
{
	Relation	rel = table_open(outbox_catalog_table(table_names[table]), AccessShareLock);
	Relation	index = index_open(outbox_catalog_table(index_names[table]), AccessShareLock);
	SysScanDesc scan = systable_beginscan_ordered(rel, index, snapshot, 0, NULL);
	HeapTuple	tuple = systable_getnext_ordered(scan, BackwardScanDirection);

	if (HeapTupleIsValid(tuple))
	{
		Datum		values[COL_COUNT];
		bool		isnull[COL_COUNT];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);
		if (DatumGetInt64(values[COL_NUMBER]) > progress->number)
		{
			progress->number = DatumGetInt64(values[COL_NUMBER]);
			progress->table = table;
			progress->settled = horizon_from_columns(&values[COL_SETTLED]);
			progress->in_window = !isnull[COL_LAST_ID];
			if (progress->in_window)
			{
				progress->window = horizon_from_columns(&values[COL_WINDOW]);
				progress->window.upper_id = DatumGetInt64(values[COL_WINDOW_UPPER_ID]);
				progress->last_id = DatumGetInt64(values[COL_LAST_ID]);
			}
		}
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
}

static void
load_as_of(Snapshot snapshot, OutboxProgress *progress)
{
	/*
	 * The beginning is the empty snapshot, not that of CREATE EXTENSION: messages
	 * enqueued by the same transaction would be lost.
	 */
	memset(progress, 0, sizeof(*progress));
	progress->settled.next_xid = FirstNormalTransactionId;
	progress->settled.snapshot.xmin = FirstNormalTransactionId;
	progress->settled.snapshot.xmax = FirstNormalTransactionId;
	progress->settled.snapshot.xip = palloc(sizeof(uint64));

	load_table(0, snapshot, progress);
	load_table(1, snapshot, progress);
}

void
outbox_progress_load(OutboxProgress *progress)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	load_as_of(snapshot, progress);
	UnregisterSnapshot(snapshot);
}

void
outbox_progress_load_as_of(Snapshot snapshot, OutboxProgress *progress)
{
	load_as_of(snapshot, progress);
	/* The table it was in may have been emptied since. */
	if (progress->number == 0)
		outbox_progress_load(progress);
}

bool
outbox_progress_settles(const OutboxProgress *progress, uint64 xid, int64 id)
{
	return outbox_snapshot_sees(&progress->settled.snapshot, xid) ||
		(progress->in_window && id <= progress->last_id &&
		 outbox_snapshot_sees(&progress->window.snapshot, xid));
}

/* ---- writing ---- */

void
outbox_progress_start(OutboxRecorder *recorder, const OutboxProgress *progress)
{
	recorder->position.number = progress->number;
	recorder->position.table = progress->table;
}

static void
columns_from_horizon(const OutboxHorizon *horizon, Datum *values, bool *isnull)
{
	values[0] = Int64GetDatum(horizon->last_id);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(horizon->next_xid));
	values[2] = outbox_snapshot_to_datum(&horizon->snapshot);
	isnull[0] = isnull[1] = isnull[2] = false;
}

/* Append a position to the table it names, or to the other if that one is full. */
static void
store(OutboxProgress *position)
{
	Relation	rel;
	Datum		values[COL_COUNT] = {0};
	bool		isnull[COL_COUNT];

	memset(isnull, true, sizeof(isnull));
	columns_from_horizon(&position->settled, &values[COL_SETTLED], &isnull[COL_SETTLED]);
	if (position->in_window)
	{
		columns_from_horizon(&position->window, &values[COL_WINDOW], &isnull[COL_WINDOW]);
		values[COL_WINDOW_UPPER_ID] = Int64GetDatum(position->window.upper_id);
		values[COL_LAST_ID] = Int64GetDatum(position->last_id);
		isnull[COL_WINDOW_UPPER_ID] = isnull[COL_LAST_ID] = false;
	}
	values[COL_NUMBER] = Int64GetDatum(++position->number);
	values[COL_RECORDED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	isnull[COL_NUMBER] = isnull[COL_RECORDED_AT] = false;

	rel = table_open(outbox_catalog_table(table_names[position->table]), RowExclusiveLock);
	if (RelationGetNumberOfBlocks(rel) >= TABLE_PAGES)
	{
		Relation	other = table_open(outbox_catalog_table(table_names[1 - position->table]),
									   RowExclusiveLock);

		/* If the other one could not be emptied yet, go on here. */
		if (RelationGetNumberOfBlocks(other) == 0)
		{
			position->table = 1 - position->table;
			table_close(rel, NoLock);
			rel = other;
		}
		else
			table_close(other, NoLock);
	}
	outbox_catalog_insert(rel, heap_form_tuple(RelationGetDescr(rel), values, isnull));
	table_close(rel, NoLock);
}

void
outbox_progress_skip_to_now(void)
{
	OutboxProgress progress;
	Snapshot	snapshot;

	/* What this transaction does not see it would settle unseen. */
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("outbox.adopt() must run in a READ COMMITTED transaction")));
	outbox_progress_load(&progress);
	progress.settled = outbox_horizon_take(CurrentMemoryContext, &snapshot);
	UnregisterSnapshot(snapshot);
	progress.in_window = false;
	store(&progress);
}

const char *
outbox_progress_spare_table(OutboxRecorder *recorder)
{
	return table_names[1 - recorder->position.table];
}

/* What one transaction does with the messages that were not confirmed. */
typedef struct AsideWork
{
	OutboxAside insert[OUTBOX_SEGMENTS];	/* segment -> deferred */
	OutboxAside bury[OUTBOX_SEGMENTS];	/* segment -> dead_letter */
	OutboxAside update;			/* stay in deferred */
	OutboxAside bury_deferred;	/* deferred -> dead_letter */
	ArrayBuildState *confirmed; /* leave deferred */
	OutboxIds	locked;			/* rows of deferred that may be changed now */
	OutboxIds	present;		/* rows of deferred that are there */
	List	   *kept;			/* OutboxEntry: the others */
	int			count;
	Size		bytes;
	TimestampTz now;
} AsideWork;

/* Exponential backoff with jitter, so that many do not come back at once. */
static TimestampTz
retry_at(TimestampTz now, int attempts)
{
	double		delay = ldexp(outbox_retry_delay_min, Min(attempts - 1, 30));

	delay = Min(delay, (double) Max(outbox_retry_delay_max, outbox_retry_delay_min));
	return TimestampTzPlusMilliseconds(now, (int64) (delay * (0.8 + 0.4 * outbox_random())));
}

/* Does a refused message get another attempt?  A nack blames the queue, not it. */
static bool
gets_another_attempt(const OutboxEntry *entry)
{
	return entry->outcome == OUTBOX_NACKED ||
		(entry->outcome != OUTBOX_UNSENDABLE && entry->attempts + 1 < outbox_max_attempts);
}

/*
 * Decide where one settled entry goes.  Called in the order of the batch, which is
 * the order in which places in the queues are given; what is in a queue already
 * keeps its place.
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
		case OUTBOX_RETURNED:
		case OUTBOX_NACKED:
		case OUTBOX_REJECTED:
		case OUTBOX_UNSENDABLE:
			if (gets_another_attempt(entry))
				outbox_aside_add(defer, entry->id, "retry", retry_at(work->now, attempts),
								 attempts, entry->error, NEW_PLACE());
			else
				outbox_aside_add(bury, entry->id, "", DT_NOEND, attempts, entry->error, 0);
			break;
		case OUTBOX_SCHEDULED:
			outbox_aside_add(defer, entry->id, "scheduled", entry->deliver_at, 0, NULL,
							 NEW_PLACE());
			break;
		case OUTBOX_BEHIND:
			outbox_aside_add(defer, entry->id, "behind", DT_NOEND, entry->attempts, NULL,
							 NEW_PLACE());
			break;
		case OUTBOX_VANISHED:
			return;
		case OUTBOX_WAITING:
		case OUTBOX_SENT:
			elog(ERROR, "message " INT64_FORMAT " is not settled", entry->id);
	}
#undef NEW_PLACE
	work->count++;
	work->bytes += entry->size;
}

/*
 * An entry from deferred: if its row cannot be had without waiting, it is kept for
 * another time, and not picked until then.
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

/* Replace the leftover of earlier times, some of which `kept` points to. */
static void
keep_leftover(OutboxRecorder *recorder, List *kept)
{
	MemoryContext old = MemoryContextSwitchTo(recorder->batch->context);
	List	   *leftover = NIL;
	ListCell   *lc;

	foreach(lc, kept)
	{
		OutboxEntry *copy = palloc(sizeof(OutboxEntry));

		*copy = *(OutboxEntry *) lfirst(lc);
		copy->key = NULL;
		if (copy->error)
			copy->error = pstrdup(copy->error);
		leftover = lappend(leftover, copy);
	}
	foreach(lc, recorder->leftover)
	{
		OutboxEntry *entry = lfirst(lc);

		if (entry->error)
			pfree(entry->error);
		pfree(entry);
	}
	list_free(recorder->leftover);
	recorder->leftover = leftover;
	MemoryContextSwitchTo(old);
}

static void
carry_out(AsideWork *work)
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
	outbox_deferred_promote(&touched);
}

/*
 * Where the settled entries at the front end, as far as one transaction goes.  The
 * ids of those from deferred are collected.
 */
static uint64
end_of_settled(OutboxBatch *batch, ArrayBuildState **ids)
{
	uint64		end = batch->head;
	int			count = 0;
	Size		bytes = 0;

	while (end < batch->tail && end < batch->gated && count < MAX_ASIDE && bytes < MAX_ASIDE_BYTES)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, end);

		if (entry->outcome <= OUTBOX_SENT)
			break;
		if (entry->outcome != OUTBOX_CONFIRMED)
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
outbox_progress_due(OutboxRecorder *recorder)
{
	if (outbox_batch_head_settled(recorder->batch))
		return TimestampTzPlusMilliseconds(recorder->recorded_at, OUTBOX_PROGRESS_INTERVAL_MS);
	if (recorder->leftover != NIL)
		return TimestampTzPlusMilliseconds(recorder->recorded_at, LEFTOVER_INTERVAL_MS);
	return DT_NOEND;
}

bool
outbox_progress_record(OutboxRecorder *recorder, TimestampTz now)
{
	OutboxBatch *batch = recorder->batch;
	AsideWork	work = {.now = now};
	ArrayBuildState *ids = NULL;
	ListCell   *lc;
	uint64		end;

	foreach(lc, recorder->leftover)
		ids = accumArrayResult(ids, Int64GetDatum(((OutboxEntry *) lfirst(lc))->id),
							   false, INT8OID, CurrentMemoryContext);
	end = end_of_settled(batch, &ids);
	if (ids != NULL)
		outbox_deferred_lock(ids, &work.locked, &work.present);

	foreach(lc, recorder->leftover)
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
	if (recorder->leftover != NIL || work.kept != NIL)
		keep_leftover(recorder, work.kept);
	if (work.count > 0)
		carry_out(&work);
	outbox_cursor_position(recorder->cursor, &recorder->position);
	store(&recorder->position);

	while (batch->head < end)
		outbox_batch_pop(batch);
	recorder->recorded_at = now;
	return work.count > 0;
}
