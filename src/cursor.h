/*
 * cursor.h
 *		Which committed messages come next.  The argument why none is lost and
 *		none read twice is at the top of cursor.c.
 */
#ifndef OUTBOX_CURSOR_H
#define OUTBOX_CURSOR_H

#include "message.h"

/* A snapshot as data: full transaction ids, sorted. */
typedef struct OutboxSnapshot
{
	uint64		xmin;			/* all below are complete */
	uint64		xmax;			/* none from here on is complete */
	int			xcnt;
	uint64	   *xip;			/* in progress, between the two */
} OutboxSnapshot;

/* A moment, as the cursor needs it; taken in the order of the fields. */
typedef struct OutboxHorizon
{
	int64		last_id;		/* L: last id drawn before the snapshot */
	OutboxSnapshot snapshot;	/* S: what is committed */
	uint64		next_xid;		/* N: first xid not assigned yet */
	int64		upper_id;		/* U: last id drawn after the snapshot */
} OutboxHorizon;

/* The position that is stored: what is settled. */
typedef struct OutboxProgress
{
	int64		number;			/* of the stored row, 0: none yet */
	int			table;			/* progress_0 or progress_1, where it is */
	OutboxHorizon settled;		/* all that is visible here is settled */
	bool		in_window;
	OutboxHorizon window;		/* if in_window: of what is visible here ... */
	int64		last_id;		/* ... all up to this id is settled too */
} OutboxProgress;

/* The messages visible at one horizon and not at the one before, in order of id. */
typedef struct OutboxWindow
{
	struct OutboxWindow *next;
	OutboxHorizon target;
	bool		complete;		/* all its messages have been read */
	int64		read_id;		/* last id read, 0: none */
	int64		settled_id;		/* last id settled, 0: none */
} OutboxWindow;

typedef struct OutboxCursor OutboxCursor;

#define OUTBOX_ALL_SEGMENTS (-1)

/* A cursor that begins at `progress`, over all segments or a single one. */
extern OutboxCursor *outbox_cursor_create(MemoryContext context,
										  const OutboxProgress *progress,
										  int segment);

/*
 * Open the window to read from: the unfinished one, else a new one up to now.
 * Returns false if nothing has been committed since the last one.  Needs a
 * transaction, keeps snapshot and locks until outbox_cursor_close().
 */
extern bool outbox_cursor_open(OutboxCursor *cursor);

/*
 * Read the next message of the open window; false at its end. The message is
 * valid until the next call; small values may be allocated in the current
 * context.
 */
extern bool outbox_cursor_next(OutboxCursor *cursor, OutboxMessage *message);

/* The first columns of a segment: never NULL, of fixed width and place. */
typedef struct OutboxRowKey
{
	int64		id;
	uint64		xid;
	TimestampTz enqueued_at;
} OutboxRowKey;

/* The same as outbox_cursor_next(), for who needs no more than this; NULL at the end. */
extern const OutboxRowKey *outbox_cursor_next_key(OutboxCursor *cursor);

extern void outbox_cursor_close(OutboxCursor *cursor);

/* The window that outbox_cursor_next() last read from. */
extern OutboxWindow *outbox_cursor_window(OutboxCursor *cursor);

/* The last window is read to its end. */
extern bool outbox_cursor_at_end(OutboxCursor *cursor);

/* All messages of `window` up to `id`, and of every window before it, are settled. */
extern void outbox_cursor_settle(OutboxCursor *cursor, OutboxWindow *window, int64 id);

/* The position to store; points into the cursor's memory. */
extern void outbox_cursor_position(OutboxCursor *cursor, OutboxProgress *progress);

/* outbox_snapshot_*: horizon.c */
extern bool outbox_snapshot_sees(const OutboxSnapshot *snapshot, uint64 xid);
extern bool outbox_snapshot_equal(const OutboxSnapshot *a, const OutboxSnapshot *b);
extern OutboxSnapshot outbox_snapshot_copy(const OutboxSnapshot *snapshot, MemoryContext context);
extern Datum outbox_snapshot_to_datum(const OutboxSnapshot *snapshot);
extern OutboxSnapshot outbox_snapshot_from_datum(Datum datum);

/* horizon.c: now.  The snapshot's registration belongs to the caller. */
struct SnapshotData;
extern OutboxHorizon outbox_horizon_take(MemoryContext context,
										 struct SnapshotData **registered);

#endif							/* OUTBOX_CURSOR_H */
