/*
 * progress.c
 *		Owns the stored position: the tables progress_0 and progress_1.
 *
 *		record.c appends a position whenever something is settled; the worker
 *		begins at the last one (cursor.c), and segments are emptied by it
 *		(segment.c).
 *
 *		Positions are appended to one of the two tables, and the other is
 *		emptied in turn: rows that are updated in place would pile up dead
 *		versions while a snapshot is held elsewhere. The row with the highest
 *		number counts.
 *
 *		Commits with synchronous_commit = local (session.c): an absent standby
 *		must not stop the worker.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "progress.h"

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
	Relation	rel = outbox_catalog_open(table_names[table], AccessShareLock);
	Relation	index = outbox_catalog_open_index(index_names[table]);
	SysScanDesc scan = systable_beginscan_ordered(rel, index, snapshot, 0, NULL);
	HeapTuple	tuple = systable_getnext_ordered(scan, BackwardScanDirection);

	if (HeapTupleIsValid(tuple))
	{
		Datum		values[OUTBOX_MAX_COLUMNS];
		bool		isnull[OUTBOX_MAX_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);
		if (DatumGetInt64(values[COL_NUMBER]) > progress->number)
		{
			progress->number = DatumGetInt64(values[COL_NUMBER]);
			progress->table = table;
			progress->settled = horizon_from_columns(&values[COL_SETTLED]);
			/* All or none, unless somebody has changed the row by hand. */
			progress->in_window = true;
			for (int i = COL_WINDOW; i <= COL_LAST_ID; i++)
				progress->in_window = progress->in_window && !isnull[i];
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
	 * The beginning is the empty snapshot, not that of CREATE EXTENSION:
	 * messages enqueued by the same transaction would be lost.
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

static void
columns_from_horizon(const OutboxHorizon *horizon, Datum *values, bool *isnull)
{
	values[0] = Int64GetDatum(horizon->last_id);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(horizon->next_xid));
	values[2] = outbox_snapshot_to_datum(&horizon->snapshot);
	isnull[0] = isnull[1] = isnull[2] = false;
}

void
outbox_progress_store(OutboxProgress *position)
{
	Relation	rel;
	Datum		values[OUTBOX_MAX_COLUMNS] = {0};
	bool		isnull[OUTBOX_MAX_COLUMNS];

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

	rel = outbox_catalog_open(table_names[position->table], RowExclusiveLock);
	if (RelationGetNumberOfBlocks(rel) >= TABLE_PAGES)
	{
		Relation	other = outbox_catalog_open(table_names[1 - position->table],
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
	outbox_progress_store(&progress);
}

const char *
outbox_progress_spare_table(const OutboxProgress *position)
{
	return table_names[1 - position->table];
}
