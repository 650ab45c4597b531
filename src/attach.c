/*
 * attach.c
 *		The worker's place among the processes: its slot in shared memory, the
 *		question whether there is anything for it to do in this database, and
 *		the lock which ensures that it is the only publisher there, whatever
 *		the launcher believes.
 *
 *		Called in this order at the start of the worker; each may end the
 *		process. On exit the slot is given back, and the launcher told.
 *
 *		The slot is taken before the process is connected to the database, and
 *		given back when it is no longer in the array of processes: to DROP
 *		DATABASE WITH (FORCE), which refuses at once, a worker that is just
 *		starting or leaving would be a session that its owner may not end.
 *		utility.c waits for the slot.
 *
 *		Must agree: launcher.c, which counts each start as a failure in
 *		advance; the worker takes that back if it has lasted or leaves in
 *		order.
 */
#include "pgcompat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "attach.h"
#include "faultpoint.h"
#include "report.h"

#define HEALTHY_MS			30000	/* a start that lasts so long was no failure */

#define PUBLISHER_LOCK_KEY1 0x6f757462	/* "outb" */
#define PUBLISHER_LOCK_KEY2 0x6f780001

static OutboxSlot *my_slot;
static TimestampTz started_at;

static void
detach(int code, Datum arg)
{
	OutboxSlot *slot = my_slot;

	LWLockReleaseAll();			/* an error may have come while we held it */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (slot->pid == MyProcPid)
	{
		slot->pid = 0;
		slot->state = OUTBOX_WORKER_STOPPED;
		slot->connected_since = 0;
		pg_atomic_write_u64(&slot->in_flight, 0);
		if (code == 0 || GetCurrentTimestamp() - started_at > HEALTHY_MS * INT64CONST(1000))
		{
			slot->failures = 0;
			slot->next_start = 0;
		}
	}
	LWLockRelease(outbox_shared->lock);
	outbox_shmem_wake_launcher();
	OUTBOX_FAULTPOINT("worker-detached");
}

/*
 * Take the slot of a database; leave if there is no place for this process.
 * On entry: not connected yet. What is registered first with on_shmem_exit is
 * called last, so after connecting has registered how to leave the array of
 * processes it would be too late.
 */
OutboxSlot *
outbox_attach(Oid dboid)
{
	OutboxSlot *slot;

	started_at = GetCurrentTimestamp();
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = outbox_shmem_find(dboid);
	if (slot == NULL || slot->pid != 0 || slot->quiesced_by != 0)
	{
		LWLockRelease(outbox_shared->lock);
		proc_exit(0);
	}
	my_slot = slot;
	slot->pid = MyProcPid;
	slot->procno = outbox_my_procno();
	slot->announced = false;	/* from here on we see what was announced */
	slot->state = OUTBOX_WORKER_STARTING;
	LWLockRelease(outbox_shared->lock);
	on_shmem_exit(detach, (Datum) 0);
	return slot;
}

/* A session in a template database is in the way of each CREATE DATABASE. */
static bool
is_template(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return true;
	result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return result;
}

/* Leave for good unless this database has the extension; tell the launcher. */
void
outbox_require_extension(void)
{
	bool		template;
	bool		present;

	/* A COMMIT PREPARED that our snapshot does not see is to announce itself (utility.c). */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	my_slot->looked = false;
	LWLockRelease(outbox_shared->lock);
	StartTransactionCommand();
	template = is_template();
	present = OidIsValid(get_extension_oid("outbox", true)) && !template;
	CommitTransactionCommand();
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	my_slot->looked = present;
	my_slot->absent = !present;
	my_slot->is_template = template;
	LWLockRelease(outbox_shared->lock);
	if (!present)
		proc_exit(0);
	outbox_shmem_wake_launcher();	/* the next database may be looked into */
}

/*
 * One publisher per database: a lock of the session, held until this process
 * ends. Its key is in the space of advisory locks, but with a fourth field
 * that no SQL function uses.
 */
void
outbox_require_publisher_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PUBLISHER_LOCK_KEY1, PUBLISHER_LOCK_KEY2, 3);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		outbox_report_error(my_slot, "another worker is publishing in this database");
		proc_exit(1);
	}
}
