/*
 * inspect.c
 *		What the views show.  Runs in a user's backend and changes nothing.
 *
 *		The segments are read with locks that are released at once: a
 *		transaction that looked at outbox.status and stays open must not keep a
 *		segment from being emptied.
 */
#include "pgcompat.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "cursor.h"
#include "progress.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(outbox_worker_status);
PG_FUNCTION_INFO_V1(outbox_backlog);
PG_FUNCTION_INFO_V1(outbox_stored_messages);

const char *
outbox_state_name(OutboxWorkerState state)
{
	switch (state)
	{
		case OUTBOX_WORKER_STOPPED:
			return "stopped";
		case OUTBOX_WORKER_STARTING:
			return "starting";
		case OUTBOX_WORKER_DISABLED:
			return "disabled";
		case OUTBOX_WORKER_PAUSED:
			return "paused";
		case OUTBOX_WORKER_CONNECTING:
			return "connecting";
		case OUTBOX_WORKER_BLOCKED:
			return "blocked";
		case OUTBOX_WORKER_WAITING_FOR_STANDBY:
			return "waiting for standby";
		case OUTBOX_WORKER_PUBLISHING:
			return "publishing";
		case OUTBOX_WORKER_IDLE:
			return "idle";
	}
	return "unknown";
}

static TupleDesc
result_desc(FunctionCallInfo fcinfo)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return BlessTupleDesc(desc);
}

/*
 * outbox.worker_status(): one row from this database's slot.  Without a slot
 * (library not preloaded, extension not yet announced) most of it is NULL.
 */
Datum
outbox_worker_status(PG_FUNCTION_ARGS)
{
	enum
	{
		COL_DATABASE, COL_PID, COL_STATE, COL_BROKER, COL_CONNECTED_SINCE,
		COL_IN_FLIGHT, COL_CONFIRMED, COL_RETURNED, COL_NACKED, COL_RECONNECTS,
		COL_LAST_ERROR, COL_LAST_ERROR_AT, COL_COUNT
	};
	Datum		values[COL_COUNT] = {0};
	bool		isnull[COL_COUNT];
	OutboxSlot *slot = outbox_shmem_find(MyDatabaseId);

#define SET(column, value) (values[column] = (value), isnull[column] = false)
	memset(isnull, true, sizeof(isnull));
	SET(COL_DATABASE, DirectFunctionCall1(namein, CStringGetDatum(get_database_name(MyDatabaseId))));
	SET(COL_STATE, CStringGetTextDatum(outbox_shared ? "stopped" : "not preloaded"));
	SET(COL_IN_FLIGHT, Int64GetDatum(0));
	if (slot)
	{
		LWLockAcquire(outbox_shared->lock, LW_SHARED);
		if (slot->pid)
			SET(COL_PID, Int32GetDatum(slot->pid));
		SET(COL_STATE, CStringGetTextDatum(outbox_state_name(slot->state)));
		if (slot->broker[0])
			SET(COL_BROKER, CStringGetTextDatum(slot->broker));
		if (slot->connected_since)
			SET(COL_CONNECTED_SINCE, TimestampTzGetDatum(slot->connected_since));
		if (slot->last_error_at)
		{
			SET(COL_LAST_ERROR, CStringGetTextDatum(slot->last_error));
			SET(COL_LAST_ERROR_AT, TimestampTzGetDatum(slot->last_error_at));
		}
		SET(COL_IN_FLIGHT, Int64GetDatum(pg_atomic_read_u64(&slot->in_flight)));
		SET(COL_CONFIRMED, Int64GetDatum(pg_atomic_read_u64(&slot->confirmed)));
		SET(COL_RETURNED, Int64GetDatum(pg_atomic_read_u64(&slot->returned)));
		SET(COL_NACKED, Int64GetDatum(pg_atomic_read_u64(&slot->nacked)));
		SET(COL_RECONNECTS, Int64GetDatum(pg_atomic_read_u64(&slot->reconnects)));
		LWLockRelease(outbox_shared->lock);
	}
#undef SET
	return HeapTupleGetDatum(heap_form_tuple(result_desc(fcinfo), values, isnull));
}

/* Fails clearly for a call that waited for a DROP EXTENSION to commit. */
static void
require_extension(void)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
		table_close(outbox_catalog_open_segment(i, AccessShareLock), AccessShareLock);
}

/*
 * outbox.backlog(): count the messages that recorded progress does not settle,
 * by reading on from it as the worker would.  NULL on a standby, where xids
 * cannot be judged.
 */
Datum
outbox_backlog(PG_FUNCTION_ARGS)
{
	Datum		values[2] = {0};
	bool		isnull[2] = {true, true};
	OutboxProgress progress;
	OutboxCursor *cursor;
	const OutboxRowKey *row;
	TimestampTz oldest = DT_NOEND;
	int64		pending = 0;

	require_extension();
	if (RecoveryInProgress())
		return HeapTupleGetDatum(heap_form_tuple(result_desc(fcinfo), values, isnull));

	outbox_progress_load(&progress);
	cursor = outbox_cursor_create(CurrentMemoryContext, &progress, OUTBOX_ALL_SEGMENTS);
	for (int turn = 0; turn < 2 && outbox_cursor_open(cursor); turn++)
	{
		while ((row = outbox_cursor_next_key(cursor)) != NULL)
		{
			pending++;
			oldest = Min(oldest, row->enqueued_at);
			CHECK_FOR_INTERRUPTS();
		}
		outbox_cursor_close(cursor);
	}

	values[0] = Int64GetDatum(pending);
	isnull[0] = false;
	values[1] = TimestampTzGetDatum(oldest);
	isnull[1] = pending == 0;
	return HeapTupleGetDatum(heap_form_tuple(result_desc(fcinfo), values, isnull));
}

/*
 * A row of a result. What is in TOAST is fetched now: once the lock is
 * released the segment may be emptied.
 */
static void
put_row(ReturnSetInfo *rsinfo, Datum *values, bool *isnull, MemoryContext scratch)
{
	MemoryContext old = MemoryContextSwitchTo(scratch);

	for (int i = 0; i < rsinfo->setDesc->natts; i++)
	{
		if (!isnull[i] && TupleDescAttr(rsinfo->setDesc, i)->attlen == -1)
			values[i] = PointerGetDatum(PG_DETOAST_DATUM_PACKED(values[i]));
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	MemoryContextSwitchTo(old);
	MemoryContextReset(scratch);
}

/* outbox.stored_messages(): all rows of all segments. */
Datum
outbox_stored_messages(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxProgress progress;
	Snapshot	snapshot;
	MemoryContext scratch;

	require_extension();
	InitMaterializedSRF(fcinfo, 0);
	/* The caller's own: pg_dump wants messages and data as of one moment. */
	snapshot = RegisterSnapshot(GetActiveSnapshot());
	outbox_progress_load_as_of(snapshot, &progress);
	scratch = AllocSetContextCreate(CurrentMemoryContext, "outbox message",
									ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	rel = outbox_catalog_open_segment(i, AccessShareLock);
		TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
		HeapTuple	tuple;

		while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		{
			Datum		values[OUTBOX_MAX_COLUMNS];
			bool		isnull[OUTBOX_MAX_COLUMNS];

			CHECK_FOR_INTERRUPTS();
			heap_deform_tuple(tuple, RelationGetDescr(rel), values, isnull);
			values[Natts_message] = Int32GetDatum(i);
			isnull[Natts_message] = false;
			values[Natts_message + 1] = BoolGetDatum(
				!outbox_progress_settles(&progress,
										 U64FromFullTransactionId(DatumGetFullTransactionId(
											values[Anum_message_xid - 1])),
										 DatumGetInt64(values[Anum_message_id - 1])));
			isnull[Natts_message + 1] = false;
			put_row(rsinfo, values, isnull, scratch);
		}
		table_endscan(scan);
		table_close(rel, AccessShareLock);
	}
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}
