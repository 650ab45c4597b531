/*
 * record.h
 *		From the batch to the tables.
 */
#ifndef OUTBOX_RECORD_H
#define OUTBOX_RECORD_H

#include "batch.h"
#include "breaker.h"
#include "cursor.h"

/* worker */
typedef struct OutboxRecorder
{
	OutboxBatch *batch;
	OutboxCursor *cursor;
	OutboxBreakers *breakers;
	OutboxProgress position;	/* as last stored */
	List	   *leftover;		/* OutboxEntry: rows of deferred that are settled, and are
								 * in the batch no more, or never were */
	TimestampTz leftover_due;	/* try them again, not before */
	TimestampTz recorded_at;
} OutboxRecorder;

/* When to record next, DT_NOEND if there is nothing to record. */
extern TimestampTz outbox_record_due(OutboxRecorder *recorder);

/*
 * Within a session: record everything at the front of the batch that is settled,
 * set aside what was not confirmed, and forget it. Returns true if deferred was
 * changed. If this raises, the batch no longer agrees with the tables: the worker
 * must end.
 */
extern bool outbox_record(OutboxRecorder *recorder, TimestampTz now);

/*
 * A row of deferred was settled that was never in the batch; the entry is
 * copied. It stays in the batch's from_deferred until it is recorded.
 */
extern void outbox_record_add(OutboxRecorder *recorder, const OutboxEntry *entry);

#endif							/* OUTBOX_RECORD_H */
