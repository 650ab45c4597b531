/*
 * cursor.c
 *		Step 3 of a message's path: read what has been committed since last
 *		time.
 *
 *		The cursor reads windows. A window lies between two horizons, 1
 *		(settled or being settled) and 2 (later): its messages are those
 *		visible in snapshot S2 and not in S1, in order of id. Each committed
 *		message is in exactly one window, whenever its transaction began and
 *		whatever its id.
 *
 *		To find them without reading everything, tell two kinds apart by xid:
 *
 *		(a) late ones: xids assigned before horizon 1 and not complete there.  They
 *			are listed in xip(S1), or lie in [xmax(S1), N1): assigned, not
 *			complete, and not listed.  Read by the index on (xid, id).
 *		(b) xids from N1 on.  They were assigned after L1 was read, and enqueue()
 *			draws the id after it has the xid, so their ids are above L1; being
 *			visible in S2, their ids are at most U2. Read by the index on (id)
 *			in (L1, U2], leaving out rows of kind (a) and rows S2 does not see.
 *
 *		An xid below xmax(S1) that is not in xip(S1) was complete in S1, and
 *		its messages belong to an earlier window. Thus (a) and (b) cover all
 *		xids, and no row is in both. docs/architecture.md has the same argument
 *		for xids that are given out again after a crash.
 *
 *		Each kind is a set of streams that come ordered by id from their index;
 *		they are merged, so nothing is sorted, and reading goes on after any id
 *		at the cost of a few index descents.
 *
 *		On entry to open() there is a transaction; what it wrote itself is not seen
 *		as settled (horizon.c). Between open() and close() a snapshot is held;
 *		nothing waits for the network there.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "cursor.h"

StaticAssertDecl(Anum_message_id == 1 && Anum_message_xid == 2 &&
				 Anum_message_enqueued_at == 3,
				 "OutboxRowKey does not match the columns of a segment");

/* One source of rows in order of id: kind (b) of a segment, or one late xid in it. */
typedef struct OutboxStream
{
	int			segment;
	uint64		xid;			/* 0: kind (b) */
	bool		exhausted;

	/* while the cursor is open */
	Relation	index;
	SysScanDesc scan;
	HeapTuple	head;			/* next row, NULL: none */
	int64		head_id;
} OutboxStream;

struct OutboxCursor
{
	MemoryContext context;
	int			only_segment;
	OutboxHorizon settled;		/* where the first window begins */
	OutboxWindow *first;		/* oldest window not settled; NULL: none */
	OutboxWindow *last;			/* the one being read */
	OutboxHorizon base;			/* where `last` begins */

	/* streams of `last` */
	bool		streams_known;
	OutboxStream *streams;
	int			stream_count;
	int			stream_size;

	/* while open */
	Snapshot	snapshot;
	Relation	segments[OUTBOX_SEGMENTS];
	OutboxStream *current;		/* the last message came from here */
};

static OutboxHorizon
copy_horizon(const OutboxHorizon *horizon, MemoryContext context)
{
	OutboxHorizon result = *horizon;

	result.snapshot = outbox_snapshot_copy(&horizon->snapshot, context);
	return result;
}

static OutboxWindow *
append_window(OutboxCursor *cursor, OutboxHorizon target, int64 read_id)
{
	OutboxWindow *window = MemoryContextAllocZero(cursor->context, sizeof(OutboxWindow));

	window->target = target;
	window->read_id = window->settled_id = read_id;
	if (cursor->last)
		cursor->last->next = window;
	else
		cursor->first = window;
	cursor->last = window;
	cursor->streams_known = false;
	return window;
}

/* Drop the windows at the front that are settled to their end. */
static void
forget_settled_windows(OutboxCursor *cursor)
{
	OutboxWindow *window;

	while ((window = cursor->first) != NULL && window->complete &&
		   window->settled_id >= window->read_id)
	{
		/* The last one stays: its target is where the next window begins. */
		if (window == cursor->last)
			break;
		pfree(cursor->settled.snapshot.xip);
		cursor->settled = window->target;
		cursor->first = window->next;
		pfree(window);
	}
}

OutboxCursor *
outbox_cursor_create(MemoryContext context, const OutboxProgress *progress, int segment)
{
	OutboxCursor *cursor = MemoryContextAllocZero(context, sizeof(OutboxCursor));

	cursor->context = context;
	cursor->only_segment = segment;
	cursor->settled = copy_horizon(&progress->settled, context);
	cursor->base = copy_horizon(&progress->settled, context);
	if (progress->in_window)
		append_window(cursor, copy_horizon(&progress->window, context), progress->last_id);
	return cursor;
}

/* ---- the streams of a window ---- */

static void
add_stream(OutboxCursor *cursor, int segment, uint64 xid)
{
	if (cursor->stream_count == cursor->stream_size)
	{
		cursor->stream_size = Max(16, cursor->stream_size * 2);
		if (cursor->streams == NULL)
			cursor->streams = MemoryContextAlloc(cursor->context,
												 cursor->stream_size * sizeof(OutboxStream));
		else
			cursor->streams = repalloc(cursor->streams,
									   cursor->stream_size * sizeof(OutboxStream));
	}
	memset(&cursor->streams[cursor->stream_count], 0, sizeof(OutboxStream));
	cursor->streams[cursor->stream_count].segment = segment;
	cursor->streams[cursor->stream_count].xid = xid;
	cursor->stream_count++;
}

static Relation
open_index(int segment, bool by_xid)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), by_xid ? "message_%d_xid_id_idx" : "message_%d_pkey", segment);
	return outbox_catalog_open_index(name);
}

/*
 * The lowest xid of at least `from` that any row of the segment carries, be
 * the row visible or not; 0 if there is none. This walks from xid to xid, not
 * from row to row: a large transaction in progress costs one step.
 */
static uint64
next_xid_in_segment(Relation segment, Relation index, uint64 from)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	uint64		result = 0;

	ScanKeyInit(&key, Anum_message_xid, BTGreaterEqualStrategyNumber, F_XID8GE,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(from)));
	scan = systable_beginscan_ordered(segment, index, SnapshotAny, 1, &key);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (HeapTupleIsValid(tuple))
		result = ((OutboxRowKey *) GETSTRUCT(tuple))->xid;
	systable_endscan_ordered(scan);
	return result;
}

/* Add streams of kind (a) for the xids in [from, below) that became visible. */
static void
add_late_streams(OutboxCursor *cursor, int segment, Relation index, uint64 from, uint64 below)
{
	Relation	rel = cursor->segments[segment];

	while (from < below &&
		   (from = next_xid_in_segment(rel, index, from)) != 0 && from < below)
	{
		if (outbox_snapshot_sees(&cursor->last->target.snapshot, from))
			add_stream(cursor, segment, from);
		from++;
	}
}

/* Find the streams of the window to be read; once per window. */
static void
find_streams(OutboxCursor *cursor)
{
	const OutboxHorizon *base = &cursor->base;
	const OutboxSnapshot *target = &cursor->last->target.snapshot;

	cursor->stream_count = 0;
	cursor->streams_known = true;
	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		Relation	index = NULL;

		/* A segment that is empty now held nothing that S2 sees. */
		if (cursor->segments[segment] == NULL ||
			RelationGetNumberOfBlocks(cursor->segments[segment]) == 0)
			continue;

		add_stream(cursor, segment, 0);
		for (int i = 0; i < base->snapshot.xcnt; i++)
		{
			uint64		xid = base->snapshot.xip[i];

			if (!outbox_snapshot_sees(target, xid))
				continue;
			if (index == NULL)
				index = open_index(segment, true);
			add_late_streams(cursor, segment, index, xid, xid + 1);
		}
		if (base->snapshot.xmax < base->next_xid)
		{
			if (index == NULL)
				index = open_index(segment, true);
			add_late_streams(cursor, segment, index, base->snapshot.xmax, base->next_xid);
		}
		if (index)
			index_close(index, AccessShareLock);
	}
}

/* Step to the next row of a stream that belongs to the window. */
static void
step_stream(OutboxCursor *cursor, OutboxStream *stream)
{
	for (;;)
	{
		OutboxRowKey *key;

		/* Rows that nobody is to see yet may be many. */
		CHECK_FOR_INTERRUPTS();
		stream->head = systable_getnext_ordered(stream->scan, ForwardScanDirection);
		if (!HeapTupleIsValid(stream->head))
		{
			stream->exhausted = true;
			return;
		}
		key = (OutboxRowKey *) GETSTRUCT(stream->head);
		stream->head_id = key->id;
		if (stream->xid != 0)
			return;
		if (key->xid >= cursor->base.next_xid &&
			outbox_snapshot_sees(&cursor->last->target.snapshot, key->xid))
			return;
	}
}

static void
open_stream(OutboxCursor *cursor, OutboxStream *stream)
{
	/* Opened again: its next row is known, perhaps behind many that are not to be seen. */
	int64		after = Max(cursor->last->read_id, stream->head_id - 1);
	ScanKeyData keys[2];
	int			count = 0;

	if (stream->xid != 0)
		ScanKeyInit(&keys[count++], Anum_message_xid, BTEqualStrategyNumber, F_XID8EQ,
					FullTransactionIdGetDatum(FullTransactionIdFromU64(stream->xid)));
	else
	{
		int64		lower = cursor->base.last_id;

		/* A sequence that was set back gives no lower bound (setval, restore). */
		if (cursor->last->target.upper_id < lower)
			lower = 0;
		after = Max(after, lower);
		ScanKeyInit(&keys[count++], Anum_message_id, BTLessEqualStrategyNumber, F_INT8LE,
					Int64GetDatum(cursor->last->target.upper_id));
	}
	ScanKeyInit(&keys[count++], Anum_message_id, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));

	stream->index = open_index(stream->segment, stream->xid != 0);
	stream->scan = systable_beginscan_ordered(cursor->segments[stream->segment],
											  stream->index, cursor->snapshot, count, keys);
	step_stream(cursor, stream);
}

static void
close_stream(OutboxStream *stream)
{
	if (stream->scan == NULL)
		return;
	systable_endscan_ordered(stream->scan);
	index_close(stream->index, AccessShareLock);
	stream->scan = NULL;
	stream->index = NULL;
	stream->head = NULL;
}

/* ---- reading ---- */

bool
outbox_cursor_at_end(OutboxCursor *cursor)
{
	return cursor->last == NULL || cursor->last->complete;
}

/*
 * Take a new horizon and make a window of what lies between it and the end of
 * the last one; false if that is the same moment.
 */
static bool
begin_window(OutboxCursor *cursor)
{
	const OutboxHorizon *from = cursor->last ? &cursor->last->target : &cursor->settled;
	OutboxHorizon target = outbox_horizon_take(cursor->context, &cursor->snapshot);

	if (outbox_snapshot_equal(&from->snapshot, &target.snapshot))
	{
		UnregisterSnapshot(cursor->snapshot);
		pfree(target.snapshot.xip);
		return false;
	}
	if (cursor->last != NULL && cursor->last->read_id == 0)
	{
		/*
		 * The last one was empty, and nothing lies between its ends: the next
		 * takes its place, instead of piling up behind a message that is not
		 * answered.
		 */
		pfree(cursor->base.snapshot.xip);
		cursor->base = cursor->last->target;
		cursor->last->target = target;
		cursor->last->complete = false;
		cursor->streams_known = false;
		return true;
	}
	pfree(cursor->base.snapshot.xip);
	cursor->base = copy_horizon(from, cursor->context);
	append_window(cursor, target, 0);
	forget_settled_windows(cursor);
	return true;
}

bool
outbox_cursor_open(OutboxCursor *cursor)
{
	if (!outbox_cursor_at_end(cursor))
		cursor->snapshot = RegisterSnapshot(GetLatestSnapshot());
	else if (!begin_window(cursor))
		return false;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (cursor->only_segment == OUTBOX_ALL_SEGMENTS || cursor->only_segment == i)
			cursor->segments[i] = outbox_catalog_open_segment(i, AccessShareLock);
	}
	if (!cursor->streams_known)
		find_streams(cursor);
	for (int i = 0; i < cursor->stream_count; i++)
	{
		if (!cursor->streams[i].exhausted)
			open_stream(cursor, &cursor->streams[i]);
	}
	cursor->current = NULL;
	return true;
}

/* Go to the next row of the window: the lowest id of all streams; NULL at the end. */
static OutboxStream *
advance(OutboxCursor *cursor)
{
	OutboxStream *lowest = NULL;

	if (cursor->current)
		step_stream(cursor, cursor->current);

	for (int i = 0; i < cursor->stream_count; i++)
	{
		OutboxStream *stream = &cursor->streams[i];

		if (stream->head && (lowest == NULL || stream->head_id < lowest->head_id))
			lowest = stream;
	}
	cursor->current = lowest;
	if (lowest == NULL)
		cursor->last->complete = true;
	else
		cursor->last->read_id = lowest->head_id;
	return lowest;
}

bool
outbox_cursor_next(OutboxCursor *cursor, OutboxMessage *message)
{
	OutboxStream *stream = advance(cursor);

	if (stream != NULL)
		outbox_message_from_tuple(message, stream->head,
								  RelationGetDescr(cursor->segments[stream->segment]),
								  stream->segment);
	return stream != NULL;
}

const OutboxRowKey *
outbox_cursor_next_key(OutboxCursor *cursor)
{
	OutboxStream *stream = advance(cursor);

	return stream == NULL ? NULL : (OutboxRowKey *) GETSTRUCT(stream->head);
}

void
outbox_cursor_close(OutboxCursor *cursor)
{
	for (int i = 0; i < cursor->stream_count; i++)
		close_stream(&cursor->streams[i]);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (cursor->segments[i])
			table_close(cursor->segments[i], AccessShareLock);
		cursor->segments[i] = NULL;
	}
	UnregisterSnapshot(cursor->snapshot);
	cursor->snapshot = NULL;
	cursor->current = NULL;
}

OutboxWindow *
outbox_cursor_window(OutboxCursor *cursor)
{
	return cursor->last;
}

/* ---- what is settled ---- */

void
outbox_cursor_settle(OutboxCursor *cursor, OutboxWindow *window, int64 id)
{
	for (OutboxWindow *w = cursor->first; w != window; w = w->next)
	{
		if (w == NULL)
			elog(ERROR, "message " INT64_FORMAT " is of no window that is open", id);
		w->settled_id = w->read_id;
	}
	window->settled_id = id;
	forget_settled_windows(cursor);
}

void
outbox_cursor_position(OutboxCursor *cursor, OutboxProgress *progress)
{
	OutboxWindow *window;

	forget_settled_windows(cursor);
	window = cursor->first;
	progress->settled = cursor->settled;
	progress->in_window = false;
	if (window == NULL)
		return;
	if (window->complete && window->settled_id >= window->read_id)
		progress->settled = window->target;
	else if (window->settled_id > 0)
	{
		progress->in_window = true;
		progress->window = window->target;
		progress->last_id = window->settled_id;
	}
}
