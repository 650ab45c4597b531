/*
 * segment.c
 *		Step 8 of a message's path: the ring. Opens the next segment when the
 *		open one is large enough, and empties segments all of whose messages
 *		are settled.
 *
 *		Which segment is open is only a hint to writers (shmem.c): a writer may
 *		use any. So a segment is emptied only
 *
 *		1. under an AccessExclusiveLock that was had without waiting: nobody has
 *		   written to it in a transaction that is still open or prepared, since
 *		   enqueue() keeps its lock to the end;
 *		2. judged by a snapshot taken after that: whatever was committed is seen;
 *		3. if progress as stored, not as remembered, has every row of it settled.
 *
 *		Emptying gives heap, TOAST table and indexes new files, as TRUNCATE
 *		does, but writes no TRUNCATE for logical decoding: a publication FOR
 *		ALL TABLES would send it to a subscriber, whose own outbox it would
 *		destroy.
 *
 *		A snapshot held elsewhere does not delay any of this: nobody but
 *		the worker reads the segments, and views lock them only while they read
 *		(inspect.c).
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/pg_class.h"
#include "commands/tablecmds.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "pgstat.h"

#include "batch.h"
#include "catalog.h"
#include "cursor.h"
#include "faultpoint.h"
#include "progress.h"
#include "segment.h"
#include "session.h"
#include "settings.h"

/* Bytes of a table, with what is in TOAST; 0 while somebody has it locked. */
static uint64
table_bytes(Oid table)
{
	Relation	rel;
	uint64		blocks;

	if (!ConditionalLockRelationOid(table, AccessShareLock))
		return 0;
	rel = try_relation_open(table, NoLock);
	if (rel == NULL)
		return 0;
	blocks = RelationGetNumberOfBlocks(rel);

	if (OidIsValid(rel->rd_rel->reltoastrelid))
	{
		Relation	toast = table_open(rel->rd_rel->reltoastrelid, AccessShareLock);

		blocks += RelationGetNumberOfBlocks(toast);
		table_close(toast, AccessShareLock);
	}
	table_close(rel, AccessShareLock);
	return blocks * BLCKSZ;
}

/* The row with the highest id in a segment; false if none is visible. */
static bool
newest_message(int segment, Snapshot snapshot, int64 *id, TimestampTz *enqueued_at)
{
	char		index_name[NAMEDATALEN];
	Relation	rel = outbox_catalog_open_segment(segment, AccessShareLock);
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	OutboxMessage message;

	snprintf(index_name, sizeof(index_name), "message_%d_pkey", segment);
	index = outbox_catalog_open_index(index_name);
	scan = systable_beginscan_ordered(rel, index, snapshot, 0, NULL);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tuple))
	{
		outbox_message_from_tuple(&message, tuple, RelationGetDescr(rel), segment);
		*id = message.id;
		*enqueued_at = message.enqueued_at;
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

int
outbox_segment_find_open(void)
{
	int			result = 0;
	int64		highest = 0;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		int64		id;
		TimestampTz enqueued_at;

		if (newest_message(i, GetActiveSnapshot(), &id, &enqueued_at) && id > highest)
		{
			highest = id;
			result = i;
		}
	}
	return result;
}

int
outbox_segment_rotate(int open_segment)
{
	if (table_bytes(outbox_catalog_segment(open_segment)) < (uint64) outbox_segment_size * 1024)
		return open_segment;
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		int			next = (open_segment + i) % OUTBOX_SEGMENTS;

		if (table_bytes(outbox_catalog_segment(next)) == 0)
		{
			OUTBOX_FAULTPOINT("segment-before-rotate");
			return next;
		}
	}
	/* None is free: the open one just grows. */
	return open_segment;
}

/*
 * Lock a row of pg_class without waiting, false if that can't be had: GRANT writes to it,
 * and holds no lock on the relation until its transaction ends. Both locks, in the order
 * in which GRANT takes them: RelationSetNewRelfilenumber() takes them again. The scan keeps
 * the row from being pruned until it is locked.
 */
static bool
lock_catalog_row(Oid relid)
{
	Relation	catalog = table_open(RelationRelationId, RowExclusiveLock);
	bool		locked = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	found;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(catalog, ClassOidIndexId, true, NULL, 1, &key);
	found = systable_getnext(scan);
	if (HeapTupleIsValid(found) && outbox_conditional_lock_tuple(catalog, &found->t_self, ExclusiveLock))
	{
		HeapTupleData tuple = {.t_self = found->t_self};
		Buffer		buffer;
		TM_FailureData failure;

		locked = heap_lock_tuple(catalog, &tuple, GetCurrentCommandId(true),
								 LockTupleNoKeyExclusive, LockWaitSkip, false,
								 &buffer, &failure) == TM_Ok;
		ReleaseBuffer(buffer);
	}
	systable_endscan(scan);
	table_close(catalog, NoLock);
	return locked;
}

static bool
lock_relation(Oid relid)
{
	return ConditionalLockRelationOid(relid, AccessExclusiveLock) && lock_catalog_row(relid);
}

/*
 * Lock a table with its TOAST table and all indexes against everybody, without
 * waiting for anybody: a VACUUM of the TOAST table holds no lock on its owner.
 */
static bool
lock_with_its_parts(Oid table)
{
	Relation	rel;
	Oid			toast;
	List	   *indexes;
	ListCell   *lc;
	bool		locked = true;

	if (!lock_relation(table))
		return false;
	rel = try_relation_open(table, NoLock);
	if (rel == NULL)
		return false;
	toast = rel->rd_rel->reltoastrelid;
	indexes = RelationGetIndexList(rel);
	table_close(rel, NoLock);
	foreach(lc, indexes)
		locked = locked && lock_relation(lfirst_oid(lc));
	return locked && (!OidIsValid(toast) || lock_with_its_parts(toast));
}

/* Give a table and its TOAST table new, empty files; the caller has them locked. */
static void
give_new_files(Oid table)
{
	Relation	rel = table_open(table, NoLock);
	Oid			toast = rel->rd_rel->reltoastrelid;

	OUTBOX_FAULTPOINT("segment-before-empty");
	CheckTableNotInUse(rel, "empty");
	RelationSetNewRelfilenumber(rel, rel->rd_rel->relpersistence);
	if (OidIsValid(toast))
	{
		Relation	toastrel = table_open(toast, NoLock);

		RelationSetNewRelfilenumber(toastrel, toastrel->rd_rel->relpersistence);
		table_close(toastrel, NoLock);
	}
	outbox_reindex_relation(table);
	pgstat_count_truncate(rel);
	OUTBOX_FAULTPOINT("segment-emptied");
	table_close(rel, NoLock);
}

bool
outbox_segment_is_settled(int segment)
{
	OutboxProgress progress;
	OutboxCursor *cursor;
	bool		found = false;

	/* Read on from stored progress as a restarted worker would, first the window
	 * it was in, then one up to now. */
	outbox_progress_load(&progress);
	cursor = outbox_cursor_create(CurrentMemoryContext, &progress, segment);
	for (int turn = 0; turn < 2 && !found && outbox_cursor_open(cursor); turn++)
	{
		found = outbox_cursor_next_key(cursor) != NULL;
		outbox_cursor_close(cursor);
	}
	return !found;
}

/* May a segment be emptied: all of it settled, and older than outbox.retention? */
static bool
may_go(int segment)
{
	int64		id;
	TimestampTz enqueued_at;

	if (outbox_retention > 0 &&
		newest_message(segment, GetLatestSnapshot(), &id, &enqueued_at) &&
		GetCurrentTimestamp() - enqueued_at < outbox_retention * USECS_PER_SEC)
		return false;
	return outbox_segment_is_settled(segment);
}

/* Empty a table unless somebody uses it; a segment (not -1) only if it is settled. */
static void
try_to_empty(const char *name, int segment)
{
	Oid			table;

	/* All tables we look into are locked without waiting, or none. */
	if (outbox_session_begin() != OUTBOX_SESSION_OPEN)
		return;
	table = outbox_catalog_table(name);
	/* Look first without the lock: even a failed attempt at it may cost an xid. */
	if (table_bytes(table) > 0 &&
		(segment < 0 || may_go(segment)) &&
		lock_with_its_parts(table) &&
		(segment < 0 || may_go(segment)))
		give_new_files(table);
	outbox_session_commit();
	OUTBOX_FAULTPOINT("segment-after-commit");
}

void
outbox_segment_empty_settled(int open_segment)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		char		name[NAMEDATALEN];

		if (i == open_segment)
			continue;
		snprintf(name, sizeof(name), "message_%d", i);
		try_to_empty(name, i);
	}
}

void
outbox_segment_empty_table(const char *name)
{
	try_to_empty(name, -1);
}
