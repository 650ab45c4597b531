/*
 * wake.c
 *		Step 2 of a message's path: the commit sets the worker's latch.
 *
 *		Owns one transaction callback per backend, registered once for life,
 *		and four flags that live as long as a transaction. At XACT_EVENT_COMMIT
 *		the transaction is visible to others (ProcArrayEndTransaction() came
 *		before), so a worker that wakes up finds its messages. A flag survives
 *		the rollback of a savepoint; the worker then looks for nothing.
 *
 *		The callback runs where errors are no longer allowed: it sets latches
 *		and flags, and takes the short lock of our slots only after CREATE
 *		EXTENSION.
 *
 *		COMMIT PREPARED runs no callback of the transaction it commits:
 *		utility.c sets the flag for it.
 */
#include "pgcompat.h"

#include "access/xact.h"

#include "faultpoint.h"
#include "shmem.h"
#include "wake.h"

static bool wake_worker = false;
static bool wake_control = false;
static bool wake_launcher = false;
static bool new_database = false;

static void
announce(void)
{
	if (outbox_shmem_claim(MyDatabaseId, true))
		outbox_shmem_wake_launcher();
	else						/* another may give its slot back */
		outbox_shmem_request_scan(OUTBOX_SCAN_ALL);
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (wake_control)
			{
				OutboxSlot *slot = outbox_shmem_find(MyDatabaseId);

				if (slot != NULL)
					pg_atomic_fetch_add_u32(&slot->control_changed, 1);
				outbox_shmem_wake_worker(MyDatabaseId);
			}
			if (wake_worker)
			{
				OUTBOX_FAULTPOINT("commit-before-wake");
				outbox_shmem_announce_work(MyDatabaseId);
				OUTBOX_FAULTPOINT("commit-after-wake");
			}
			if (wake_launcher)
				announce();
			if (new_database)
				outbox_shmem_request_scan(OUTBOX_SCAN_NEW);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	wake_worker = wake_control = wake_launcher = new_database = false;
}

void
outbox_wake_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

void
outbox_wake_worker_at_commit(void)
{
	wake_worker = true;
}

void
outbox_wake_control_at_commit(void)
{
	wake_control = true;
}

void
outbox_wake_launcher_at_commit(void)
{
	wake_launcher = true;
}

void
outbox_wake_scan_at_commit(void)
{
	new_database = true;
}
