/*
 * record.h
 *		From the batch to the tables.
 */
#ifndef OUTBOX_RECORD_H
#define OUTBOX_RECORD_H

#include "batch.h"
#include "cursor.h"

/* worker */
typedef struct OutboxRecorder
{
	OutboxBatch *batch;
	OutboxCursor *cursor;
	OutboxProgress position;	/* as last stored */
	List	   *leftover;		/* OutboxEntry: rows of deferred an operator has locked */
	TimestampTz recorded_at;
} OutboxRecorder;

/* When to record next, DT_NOEND if there is nothing to record. */
extern TimestampTz outbox_record_due(OutboxRecorder *recorder);

/*
 * Within a session that writes: record everything at the front of the batch
 * that is settled, set aside what was not confirmed, and forget it. Returns
 * true if deferred was changed. If this raises, the batch no longer agrees
 * with the tables: the worker must end.
 */
extern bool outbox_record(OutboxRecorder *recorder, TimestampTz now);

#endif							/* OUTBOX_RECORD_H */
