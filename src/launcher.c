/*
 * launcher.c
 *		Owns the question which databases get a worker, and when.
 *
 *		The launcher is connected to no database, so it cannot see who has the
 *		extension. It starts a worker in every database it knows nothing of,
 *		one after another; a worker that finds no extension says so in its slot
 *		and leaves, and is not started there again until CREATE EXTENSION
 *		announces itself (wake.c). It looks for new databases after CREATE
 *		DATABASE, since a copy of a template may have the extension, and every
 *		SCAN_INTERVAL_MS.
 *
 *		Workers are never restarted by the postmaster: a restart after DROP
 *		DATABASE would fail for ever. The launcher restarts them, with a delay
 *		that doubles from one failure to the next. Each start is counted as a
 *		failure in advance; the worker takes that back once it is healthy or
 *		leaves in order, so a start that dies before it can say anything is
 *		counted too.
 *
 *		The slots, not the launcher's memory, say which workers are alive: a
 *		launcher that was killed and restarted finds them there. Starting one
 *		twice is harmless, since a worker publishes only under the publisher
 *		lock (attach.c).
 *
 *		Must never: open a database, wait without a limit, hold the lock of the
 *		slots across anything that waits.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "launcher.h"
#include "settings.h"
#include "shmem.h"
#include "worker.h"

#define SCAN_INTERVAL_MS	60000
#define RESTART_DELAY_MAX_S 60
#define NO_SLOT_DELAY_S		10	/* max_worker_processes is exhausted */
#define PROBE_TIMEOUT_MS	5000	/* then the next database gets its turn */

/* All below lives in the launcher process only. */
static BackgroundWorkerHandle **handles;	/* by slot; NULL: none started by us */
static List *without_extension = NIL;	/* databases a worker has looked into */
static List *to_probe = NIL;	/* databases nobody has looked into yet */
static Oid	probing = InvalidOid;	/* one of them is being looked into ... */
static TimestampTz probing_until;	/* ... until it has been, or this moment */
static bool reported_exhaustion = false;
static bool reported_no_slot = false;

void
outbox_launcher_init(void)
{
	BackgroundWorker worker = {
		.bgw_name = "outbox launcher",
		.bgw_type = "outbox launcher",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		/* Never on a standby; on promotion it starts by itself. */
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 5,
		.bgw_library_name = "outbox",
		.bgw_function_name = "outbox_launcher_main",
	};

	/* Under pg_upgrade nothing may be published from the old or the new cluster. */
	if (IsBinaryUpgrade)
		return;
	RegisterBackgroundWorker(&worker);
}

static void
detach_launcher(int code, Datum arg)
{
	LWLockReleaseAll();			/* an error may have come while we held it */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (outbox_shared->launcher_pid == MyProcPid)
		outbox_shared->launcher_pid = 0;
	LWLockRelease(outbox_shared->lock);
}

static void
attach_launcher(void)
{
	before_shmem_exit(detach_launcher, (Datum) 0);
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher_pid = MyProcPid;
	outbox_shared->launcher_procno = outbox_my_procno();
	LWLockRelease(outbox_shared->lock);
}

/* OIDs of the databases that may have the extension, in TopMemoryContext. */
static List *
list_databases(void)
{
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		/* A session in a template would be in the way of CREATE DATABASE. */
		if (database->datallowconn && !database->datistemplate &&
			!database_is_invalid_form(database))
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			result = lappend_oid(result, database->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
	return result;
}

/*
 * Compare the databases that are there with what we know: queue the new ones
 * to be looked into, forget those that are gone.
 */
static void
scan_databases(void)
{
	List	   *databases = list_databases();
	ListCell   *lc;
	List	   *kept = NIL;

	list_free(to_probe);
	to_probe = NIL;
	/* Nobody but this process frees a slot of a database that is there. */
	foreach(lc, databases)
	{
		Oid			dboid = lfirst_oid(lc);

		if (list_member_oid(without_extension, dboid))
			kept = lappend_oid(kept, dboid);
		else if (outbox_shmem_find(dboid) == NULL)
			to_probe = lappend_oid(to_probe, dboid);
	}
	list_free(without_extension);
	without_extension = kept;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->slot_count; i++)
	{
		OutboxSlot *slot = &outbox_shared->slots[i];

		if (OidIsValid(slot->dboid) && slot->pid == 0 && handles[i] == NULL &&
			!list_member_oid(databases, slot->dboid))
			outbox_shmem_clear(slot);
	}
	LWLockRelease(outbox_shared->lock);
	list_free(databases);
}

/*
 * Look into the next unknown database, once the one before has been settled:
 * its worker has found the extension, or has left. One that cannot be looked
 * into now (locked, being copied) keeps its slot and does not hold up the
 * others.
 */
static void
probe_next(TimestampTz now, TimestampTz *wake_at)
{
	while (to_probe != NIL || OidIsValid(probing))
	{
		OutboxSlot *slot = outbox_shmem_find(probing);

		/* The clock may have been set back. */
		probing_until = Min(probing_until, TimestampTzPlusMilliseconds(now, PROBE_TIMEOUT_MS));
		if (slot != NULL && !slot->looked && now < probing_until)
		{
			*wake_at = Min(*wake_at, probing_until);
			return;
		}
		probing = InvalidOid;
		if (to_probe == NIL)
			return;
		if (!outbox_shmem_claim(linitial_oid(to_probe), false))
		{
			if (!reported_no_slot)
				ereport(LOG,
						(errmsg("outbox: no worker slot is free to look into database with OID %u",
								linitial_oid(to_probe)),
						 errhint("Raise outbox.max_databases (now %d) and restart the server.",
								 outbox_max_databases)));
			reported_no_slot = true;
			return;
		}
		probing = linitial_oid(to_probe);
		probing_until = TimestampTzPlusMilliseconds(now, PROBE_TIMEOUT_MS);
		to_probe = list_delete_first(to_probe);
	}
}

static void
start_worker(int index, Oid dboid)
{
	BackgroundWorker worker = {
		.bgw_type = "outbox worker",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_library_name = "outbox",
		.bgw_function_name = "outbox_worker_main",
		.bgw_main_arg = ObjectIdGetDatum(dboid),
		.bgw_notify_pid = MyProcPid,
	};
	OutboxSlot *slot = &outbox_shared->slots[index];

	snprintf(worker.bgw_name, BGW_MAXLEN, "outbox worker for database %u", dboid);
	if (RegisterDynamicBackgroundWorker(&worker, &handles[index]))
	{
		reported_exhaustion = false;
		return;
	}

	handles[index] = NULL;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   NO_SLOT_DELAY_S * 1000);
	slot->last_error_at = GetCurrentTimestamp();
	strlcpy(slot->last_error,
			"could not start the worker: max_worker_processes is exhausted",
			OUTBOX_ERROR_LEN);
	LWLockRelease(outbox_shared->lock);
	if (!reported_exhaustion)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("outbox: could not start the worker for database with OID %u", dboid),
				 errdetail("max_worker_processes is exhausted. Messages are kept until a worker can run."),
				 errhint("Raise max_worker_processes (now %d) and restart the server.",
						 max_worker_processes)));
	reported_exhaustion = true;
}

/* Has the worker that we started in this slot ended? */
static bool
worker_ended(int index)
{
	pid_t		pid;

	if (handles[index] == NULL)
		return true;
	if (GetBackgroundWorkerPid(handles[index], &pid) != BGWH_STOPPED)
		return false;
	pfree(handles[index]);
	handles[index] = NULL;
	return true;
}

/* A backend that marked a slot and died can no longer take the mark back. */
static bool
is_quiesced(OutboxSlot *slot)
{
	if (slot->quiesced_by == 0)
		return false;
	if (BackendPidGetProc(slot->quiesced_by) != NULL)
		return true;
	slot->quiesced_by = 0;
	return false;
}

/* What is to be done about a slot. */
typedef enum SlotVerdict
{
	SLOT_LEAVE,					/* nothing, or not yet */
	SLOT_START,					/* start a worker */
	SLOT_FORGET					/* the database does not have the extension */
} SlotVerdict;

/*
 * Decide about one slot; its database is put into *dboid. A start is counted
 * as a failure in advance. Lowers *wake_at to the moment when to ask again.
 */
static SlotVerdict
judge_slot(int index, TimestampTz now, Oid *dboid, TimestampTz *wake_at)
{
	OutboxSlot *slot = &outbox_shared->slots[index];
	SlotVerdict verdict = SLOT_LEAVE;

	if (!OidIsValid(slot->dboid) || slot->pid != 0 || !worker_ended(index))
		return SLOT_LEAVE;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	*dboid = slot->dboid;
	/* The clock may have been set back. */
	slot->next_start = Min(slot->next_start,
						   TimestampTzPlusMilliseconds(now, RESTART_DELAY_MAX_S * 1000L));
	if (!OidIsValid(slot->dboid) || slot->pid != 0)
		 /* freed or attached this instant */ ;
	else if (slot->absent && !slot->announced)
	{
		/* A scan passes over a template, and finds it once it is one no longer. */
		verdict = slot->is_template ? SLOT_LEAVE : SLOT_FORGET;
		outbox_shmem_clear(slot);
	}
	else if (is_quiesced(slot))
		*wake_at = Min(*wake_at, TimestampTzPlusMilliseconds(now, 1000));
	else if (slot->next_start > now)
		*wake_at = Min(*wake_at, slot->next_start);
	else
	{
		int			delay = Min(1 << Min(slot->failures, 10), RESTART_DELAY_MAX_S);

		slot->failures++;
		slot->next_start = TimestampTzPlusMilliseconds(now, delay * 1000L);
		slot->absent = false;
		/* Whoever asks from now on may have come too late for the settings that it reads. */
		pg_atomic_write_u32(&slot->reload, 0);
		verdict = SLOT_START;
	}
	LWLockRelease(outbox_shared->lock);
	return verdict;
}

/* Do what is due about every slot. */
static void
tend_slots(TimestampTz now, TimestampTz *wake_at)
{
	for (int i = 0; i < outbox_shared->slot_count; i++)
	{
		Oid			dboid;

		switch (judge_slot(i, now, &dboid, wake_at))
		{
			case SLOT_LEAVE:
				break;
			case SLOT_START:
				without_extension = list_delete_oid(without_extension, dboid);
				start_worker(i, dboid);
				break;
			case SLOT_FORGET:
				without_extension = list_append_unique_oid(without_extension, dboid);
				break;
		}
	}
}

void
outbox_launcher_main(Datum main_arg)
{
	TimestampTz next_scan = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	attach_launcher();
	handles = MemoryContextAllocZero(TopMemoryContext,
									 outbox_shared->slot_count * sizeof(*handles));
	MemoryContextSwitchTo(TopMemoryContext);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz wake_at;
		uint32		scan;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		scan = pg_atomic_exchange_u32(&outbox_shared->scan_requested, OUTBOX_SCAN_NONE);
		if (scan & OUTBOX_SCAN_ALL)
		{
			list_free(without_extension);
			without_extension = NIL;
		}
		next_scan = Min(next_scan, TimestampTzPlusMilliseconds(now, SCAN_INTERVAL_MS));
		if (now >= next_scan || scan != OUTBOX_SCAN_NONE)
		{
			scan_databases();
			next_scan = TimestampTzPlusMilliseconds(now, SCAN_INTERVAL_MS);
		}
		wake_at = next_scan;

		/* A slot that falls free lets the next database be looked into, and so on. */
		tend_slots(now, &wake_at);
		probe_next(now, &wake_at);
		tend_slots(now, &wake_at);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake_at)),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
