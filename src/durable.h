/*
 * durable.h
 *		Whether a commit that is visible would survive a crash, or a failover.
 */
#ifndef OUTBOX_DURABLE_H
#define OUTBOX_DURABLE_H

#include "access/xlogdefs.h"

/* worker: the gate of one run of messages */
typedef struct OutboxGate
{
	bool		added;			/* there are messages in the run */
	uint64		last_xid;		/* looked up last; 0: none */
	XLogRecPtr	commit_lsn;		/* latest asynchronous commit seen; 0: none */
	XLogRecPtr	target;			/* the standbys must have this; 0: gate is open */
} OutboxGate;

/* A message of this transaction is among the run. */
extern void outbox_gate_add(OutboxGate *gate, uint64 xid);

/*
 * The run is complete: make it durable here, and find out what the standbys
 * must have.  Within no transaction or any.  Raises if WAL cannot be flushed.
 */
extern void outbox_gate_close(OutboxGate *gate);

/* May the run be published?  Does not wait. */
extern bool outbox_gate_is_open(OutboxGate *gate);

#endif							/* OUTBOX_DURABLE_H */
