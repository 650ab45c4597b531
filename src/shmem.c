/*
 * shmem.c
 *		Owns the shared memory: the launcher's place and one slot per database.
 *
 *		Slots are found by database OID; there are few, so a scan will do. A
 *		slot is claimed under the lock and freed only by the launcher, or by
 *		the hook after DROP DATABASE. A reader without the lock may see a slot
 *		change its database under it: all it can do then is set a latch for
 *		nothing or write to another segment, both harmless.
 */
#include "pgcompat.h"

#include "storage/ipc.h"
#include "storage/shmem.h"

#include "message.h"
#include "settings.h"
#include "shmem.h"

OutboxShared *outbox_shared = NULL;

static shmem_request_hook_type next_shmem_request_hook = NULL;
static shmem_startup_hook_type next_shmem_startup_hook = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(OutboxShared, slots),
					mul_size(outbox_max_databases, sizeof(OutboxSlot)));
}

static void
request_shmem(void)
{
	if (next_shmem_request_hook)
		next_shmem_request_hook();
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("outbox", 1);
}

static void
startup_shmem(void)
{
	bool		found;

	if (next_shmem_startup_hook)
		next_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	outbox_shared = ShmemInitStruct("outbox", shared_size(), &found);
	if (!found)
	{
		memset(outbox_shared, 0, shared_size());
		outbox_shared->lock = &(GetNamedLWLockTranche("outbox"))->lock;
		outbox_shared->slot_count = outbox_max_databases;
		pg_atomic_init_u32(&outbox_shared->scan_requested, 0);
		for (int i = 0; i < outbox_max_databases; i++)
		{
			OutboxSlot *slot = &outbox_shared->slots[i];

			pg_atomic_init_u32(&slot->open_segment, 0);
			pg_atomic_init_u32(&slot->control_changed, 0);
			pg_atomic_init_u32(&slot->reload, 0);
			pg_atomic_init_u32(&slot->work, 0);
			pg_atomic_init_u64(&slot->in_flight, 0);
			pg_atomic_init_u64(&slot->confirmed, 0);
			pg_atomic_init_u64(&slot->returned, 0);
			pg_atomic_init_u64(&slot->nacked, 0);
			pg_atomic_init_u64(&slot->reconnects, 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
outbox_shmem_init(void)
{
	next_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	next_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/* The slot with this content of dboid; InvalidOid finds a free one. */
static OutboxSlot *
find_slot(Oid dboid)
{
	for (int i = 0; i < outbox_shared->slot_count; i++)
	{
		if (outbox_shared->slots[i].dboid == dboid)
			return &outbox_shared->slots[i];
	}
	return NULL;
}

OutboxSlot *
outbox_shmem_find(Oid dboid)
{
	if (outbox_shared == NULL || !OidIsValid(dboid))
		return NULL;
	return find_slot(dboid);
}

/*
 * Claim and mark under one hold of the lock: in between, the launcher might
 * free the slot.
 */
bool
outbox_shmem_claim(Oid dboid, bool announce)
{
	OutboxSlot *slot;

	if (outbox_shared == NULL)
		return false;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dboid);
	if (slot == NULL)
	{
		slot = find_slot(InvalidOid);
		if (slot != NULL)
		{
			outbox_shmem_clear(slot);
			slot->dboid = dboid;
		}
	}
	if (slot != NULL && announce)
	{
		slot->announced = true;
		slot->next_start = 0;
		slot->failures = 0;
	}
	LWLockRelease(outbox_shared->lock);
	return slot != NULL;
}

void
outbox_shmem_forgive(Oid dboid)
{
	OutboxSlot *slot;

	if (outbox_shared == NULL)
		return;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dboid);
	if (slot != NULL)
	{
		slot->failures = 0;
		slot->next_start = 0;
	}
	LWLockRelease(outbox_shared->lock);
	outbox_shmem_wake_launcher();
}

/*
 * Make a slot free.
 *
 * The caller holds the lock exclusively; no worker may be attached.
 */
void
outbox_shmem_clear(OutboxSlot *slot)
{
	Assert(LWLockHeldByMeInMode(outbox_shared->lock, LW_EXCLUSIVE));
	Assert(slot->pid == 0);

	memset(slot, 0, offsetof(OutboxSlot, open_segment));
	pg_atomic_write_u32(&slot->open_segment, 0);
	pg_atomic_write_u32(&slot->reload, 0);
	pg_atomic_write_u32(&slot->work, 0);
	pg_atomic_write_u64(&slot->in_flight, 0);
	pg_atomic_write_u64(&slot->confirmed, 0);
	pg_atomic_write_u64(&slot->returned, 0);
	pg_atomic_write_u64(&slot->nacked, 0);
	pg_atomic_write_u64(&slot->reconnects, 0);
}

/*
 * Which segment enqueue() shall write to.  Only a hint: the worker reads all
 * segments, and empties one only while nobody writes to it (segment.c), so an
 * outdated answer is as right as a current one.
 */
int
outbox_shmem_open_segment(void)
{
	OutboxSlot *slot = outbox_shmem_find(MyDatabaseId);

	if (slot == NULL)
		return 0;
	return pg_atomic_read_u32(&slot->open_segment) % OUTBOX_SEGMENTS;
}

static void
set_latch_of(pid_t pid, int procno)
{
	/* A PGPROC never goes away; a latch set for a successor does no harm. */
	if (pid != 0)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

/* What runs in a transaction callback must not raise, and must not take a lock. */
void
outbox_shmem_wake_worker(Oid dboid)
{
	OutboxSlot *slot = outbox_shmem_find(dboid);

	if (slot != NULL)
		set_latch_of(slot->pid, slot->procno);
}

/*
 * The worker takes the mark away before the snapshot with which it reads (publish() in
 * worker.c). Whoever finds it here has committed before that, and need not set the
 * latch: while the worker cannot publish, or is busy, commits do not disturb it. The
 * exchange is a barrier: the commit is visible before the mark is looked at. The mark
 * is what counts, and the worker looks at it before it sleeps: a latch that is set while
 * it waits for a lock is reset by that wait.
 */
void
outbox_shmem_announce_work(Oid dboid)
{
	OutboxSlot *slot = outbox_shmem_find(dboid);

	if (slot != NULL && pg_atomic_exchange_u32(&slot->work, 1) == 0)
		set_latch_of(slot->pid, slot->procno);
}

void
outbox_shmem_wake_launcher(void)
{
	if (outbox_shared != NULL)
		set_latch_of(outbox_shared->launcher_pid, outbox_shared->launcher_procno);
}

/* Runs in a transaction callback as well. */
void
outbox_shmem_request_scan(OutboxScan scan)
{
	if (outbox_shared == NULL)
		return;
	pg_atomic_fetch_or_u32(&outbox_shared->scan_requested, scan);
	outbox_shmem_wake_launcher();
}
