/*
 * progress.h
 *		The stored position: what is settled.
 */
#ifndef OUTBOX_PROGRESS_H
#define OUTBOX_PROGRESS_H

#include "cursor.h"

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
 * Record that everything committed so far is settled. In a transaction that
 * has locked out all writers, while no worker publishes.
 */
extern void outbox_progress_skip_to_now(void);

/*
 * Append a position, numbered anew, to the table it names, or to the other if
 * that one is full; the table and number in *position are brought up to date.
 */
extern void outbox_progress_store(OutboxProgress *position);

/* Name of the table that does not hold this position, the last one stored. */
extern const char *outbox_progress_spare_table(const OutboxProgress *position);

#endif							/* OUTBOX_PROGRESS_H */
