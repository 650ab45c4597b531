/*
 * durable.c
 *		Step 4 of a message's path: nothing leaves that a crash could take
 *		back.
 *
 *		A message that is visible is not always durable:
 *
 *		- after an asynchronous commit its WAL may not be on disk yet.  The commit
 *		  log remembers the LSN of asynchronous commits, per group of
 *		  transactions; flushing up to it makes all of them durable, and costs
 *		  nothing where everybody commits synchronously;
 *		- a commit that did not wait for the synchronous standbys
 *		  (synchronous_commit = local, a cancelled wait, a restart in the
 *		  middle of one) may be lost in a failover. Any such commit is below
 *		  the flush position of this moment, so waiting until the standbys have
 *		  flushed that far covers it.
 *
 *		The run between outbox_gate_add() and outbox_gate_is_open() must not be
 *		handed to the socket, nor be moved to deferred (publish.c keeps it
 *		behind OutboxBuffer.sendable and OutboxBatch.gated).
 *
 *		Must never wait for a standby: the worker asks again from its loop.
 */
#include "pgcompat.h"

#include "access/clog.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"

#include "durable.h"
#include "settings.h"

void
outbox_gate_add(OutboxGate *gate, uint64 xid)
{
	FullTransactionId next;
	uint64		oldest;

	gate->added = true;
	if (xid == gate->last_xid)
		return;
	gate->last_xid = xid;

	/*
	 * An xid whose commit log is gone is of an old backlog, and was flushed
	 * long ago: the log is cut off behind a checkpoint. The lock keeps it from
	 * being cut off while we look.
	 */
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	next = ReadNextFullTransactionId();
	oldest = U64FromFullTransactionId(next) -
		(uint32) (XidFromFullTransactionId(next) - outbox_oldest_clog_xid());
	if (xid >= oldest)
		gate->commit_lsn = Max(gate->commit_lsn,
							   TransactionIdGetCommitLSN((TransactionId) xid));
	LWLockRelease(XactTruncationLock);
}

/* SyncStandbysDefined() is in no header of PostgreSQL 15. */
static bool
wants_standbys(void)
{
	return outbox_durability == OUTBOX_DURABILITY_STANDBYS &&
		SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0' &&
		max_wal_senders > 0;
}

void
outbox_gate_close(OutboxGate *gate)
{
	if (gate->commit_lsn != InvalidXLogRecPtr && XLogNeedsFlush(gate->commit_lsn))
		XLogFlush(gate->commit_lsn);
	gate->commit_lsn = InvalidXLogRecPtr;
	gate->target = wants_standbys() ? GetFlushRecPtr(NULL) : InvalidXLogRecPtr;
	gate->last_xid = 0;
	gate->added = false;
}

bool
outbox_gate_is_open(OutboxGate *gate)
{
	XLogRecPtr	flushed;

	if (gate->target == InvalidXLogRecPtr)
		return true;
	if (wants_standbys())
	{
		LWLockAcquire(SyncRepLock, LW_SHARED);
		flushed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
		if (flushed < gate->target)
			return false;
	}
	gate->target = InvalidXLogRecPtr;
	return true;
}
