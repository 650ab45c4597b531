/*
 * horizon.c
 *		Takes the moments between which the cursor reads, and turns their
 *		snapshots into data and back.
 *
 *		A horizon is taken in the order L, S, N, U (see OutboxHorizon), and
 *		every use of it in cursor.c relies on that order:
 *
 *			L  the last id drawn,
 *			S  a snapshot,
 *			N  the next transaction id to be assigned,
 *			U  the last id drawn.
 *
 *		enqueue() assigns the transaction's xid before it draws an id, so a
 *		message whose xid is N or above has an id above L; a message visible in
 *		S has an id of at most U.
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "lib/qunique.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "cursor.h"

/* Last id drawn from the sequence, 0 before the first. */
static int64
last_drawn_id(void)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum		result;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(outbox_catalog_sequence());
	fcinfo->args[0].isnull = false;
	result = pg_sequence_last_value(fcinfo);
	return fcinfo->isnull ? 0 : DatumGetInt64(result);
}

/* A 32-bit xid of a snapshot is at most 2^31 away from the next xid. */
static uint64
widen_xid(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return (epoch << 32) | xid;
}

static int
compare_xids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

static OutboxSnapshot
snapshot_as_data(Snapshot snapshot, FullTransactionId next, MemoryContext context)
{
	OutboxSnapshot result;
	TransactionId own = GetTopTransactionIdIfAny();

	Assert(!snapshot->takenDuringRecovery);
	result.xmin = widen_xid(snapshot->xmin, next);
	result.xmax = widen_xid(snapshot->xmax, next);
	result.xcnt = snapshot->xcnt;
	result.xip = MemoryContextAlloc(context, (snapshot->xcnt + 1) * sizeof(uint64));
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		result.xip[i] = widen_xid(snapshot->xip[i], next);

	/*
	 * A snapshot does not list its owner, who is not complete either: what the
	 * same transaction enqueues later must not count as settled.
	 */
	if (TransactionIdIsValid(own) && widen_xid(own, next) < result.xmax)
	{
		result.xip[result.xcnt++] = widen_xid(own, next);
		result.xmin = Min(result.xmin, widen_xid(own, next));
	}
	qsort(result.xip, result.xcnt, sizeof(uint64), compare_xids);
	/* One that is being prepared runs twice, for as long as it waits for a standby. */
	result.xcnt = qunique(result.xip, result.xcnt, sizeof(uint64), compare_xids);
	return result;
}

OutboxHorizon
outbox_horizon_take(MemoryContext context, struct SnapshotData **registered)
{
	OutboxHorizon horizon;
	Snapshot	snapshot;
	FullTransactionId next;

	horizon.last_id = last_drawn_id();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	next = ReadNextFullTransactionId();
	horizon.next_xid = U64FromFullTransactionId(next);
	horizon.upper_id = last_drawn_id();
	horizon.snapshot = snapshot_as_data(snapshot, next, context);
	*registered = snapshot;
	return horizon;
}

/* Was the transaction committed or aborted when the snapshot was taken? */
bool
outbox_snapshot_sees(const OutboxSnapshot *snapshot, uint64 xid)
{
	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	return bsearch(&xid, snapshot->xip, snapshot->xcnt, sizeof(uint64),
				   compare_xids) == NULL;
}

/* On the whole snapshot: an old transaction's end may leave xmax as it was. */
bool
outbox_snapshot_equal(const OutboxSnapshot *a, const OutboxSnapshot *b)
{
	return a->xmin == b->xmin && a->xmax == b->xmax && a->xcnt == b->xcnt &&
		memcmp(a->xip, b->xip, a->xcnt * sizeof(uint64)) == 0;
}

OutboxSnapshot
outbox_snapshot_copy(const OutboxSnapshot *snapshot, MemoryContext context)
{
	OutboxSnapshot result = *snapshot;

	result.xip = MemoryContextAlloc(context, Max(1, result.xcnt) * sizeof(uint64));
	memcpy(result.xip, snapshot->xip, result.xcnt * sizeof(uint64));
	return result;
}

/* As SQL's pg_snapshot, by way of its text form: its struct is core's own. */
Datum
outbox_snapshot_to_datum(const OutboxSnapshot *snapshot)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 snapshot->xmin, snapshot->xmax);
	for (int i = 0; i < snapshot->xcnt; i++)
		appendStringInfo(&text, "%s" UINT64_FORMAT, i > 0 ? "," : "", snapshot->xip[i]);
	return DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(text.data));
}

OutboxSnapshot
outbox_snapshot_from_datum(Datum datum)
{
	OutboxSnapshot result;
	char	   *text = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, datum));
	char	   *p = text;

	result.xmin = strtoull(p, &p, 10);
	result.xmax = strtoull(p + 1, &p, 10);
	result.xcnt = 0;
	result.xip = palloc((strlen(p) / 2 + 1) * sizeof(uint64));
	while (*p != '\0' && p[1] != '\0')
		result.xip[result.xcnt++] = strtoull(p + 1, &p, 10);
	return result;
}
