/*
 * progress.h
 *		What is recorded of the work done.
 */
#ifndef OUTBOX_PROGRESS_H
#define OUTBOX_PROGRESS_H

#include "batch.h"
#include "cursor.h"

/* Not before so much time has passed since the last record. */
#define OUTBOX_PROGRESS_INTERVAL_MS 200

/*
 * The position as stored; the beginning of everything if there is none.
 * In any transaction; allocates in the current context.
 */
extern void outbox_progress_load(OutboxProgress *progress);

/* The same as of a snapshot: what was settled then. */
extern void outbox_progress_load_as_of(struct SnapshotData *snapshot, OutboxProgress *progress);

/* Is a message settled as of this progress? */
extern bool outbox_progress_settles(const OutboxProgress *progress, uint64 xid, int64 id);

/*
 * Record that everything committed so far is settled.  In a transaction that has
 * locked out all writers, while no worker publishes.
 */
extern void outbox_progress_skip_to_now(void);

/* worker */
typedef struct OutboxRecorder
{
	OutboxBatch *batch;
	OutboxCursor *cursor;
	OutboxProgress position;	/* as last stored */
	List	   *leftover;		/* OutboxEntry: rows of deferred an operator has locked */
	TimestampTz recorded_at;
} OutboxRecorder;

extern void outbox_progress_start(OutboxRecorder *recorder, const OutboxProgress *progress);

/* When to record next, DT_NOEND if there is nothing to record. */
extern TimestampTz outbox_progress_due(OutboxRecorder *recorder);

/*
 * Within a session that writes: record everything at the front of the batch that
 * is settled, set aside what was not confirmed, and forget it.  Returns true if
 * deferred was changed.  If this raises, the batch no longer agrees with the
 * tables: the worker must end.
 */
extern bool outbox_progress_record(OutboxRecorder *recorder, TimestampTz now);

/* Name of the table that does not hold the last recorded row. */
extern const char *outbox_progress_spare_table(OutboxRecorder *recorder);

#endif							/* OUTBOX_PROGRESS_H */
