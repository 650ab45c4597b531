/*
 * utility.c
 *		Utility commands that concern the workers, in the backend that runs
 *		them.
 *
 *		COMMIT PREPARED wakes the worker, since the prepared transaction's own
 *		callback never runs (wake.c). DROP EXTENSION wakes it at commit, so
 *		that it leaves at once. CREATE DATABASE makes the launcher look for new
 *		databases.
 *
 *		DROP, RENAME, SET TABLESPACE and CREATE ... TEMPLATE need the database
 *		without sessions: the hook asks its worker to leave (quiesce), waits
 *		until it has given its slot back (attach.c), and lets the launcher
 *		start it again when the command is over, whether it worked or not. The
 *		mark carries the pid of the backend, so that one that dies in between
 *		does not keep the worker away (launcher.c).
 */
#include "pgcompat.h"

#include <signal.h>

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "shmem.h"
#include "utility.h"
#include "wake.h"

/* Core waits 5 s for other sessions to leave; so do we, at most. */
#define QUIESCE_TIMEOUT_MS 5000
#define TERMINATE_AFTER_MS 100	/* with a signal, if the mark is not enough */

static ProcessUtility_hook_type next_ProcessUtility = NULL;

/* The argument of an option of CREATE or ALTER DATABASE, NULL if not given. */
static const char *
database_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/* The attribute CREATEDB; core has a function for it in some minor releases only. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = superuser();

	if (result)
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* What CREATE DATABASE asks of who makes a copy. */
static bool
may_copy(Oid dboid)
{
	HeapTuple	tuple;
	bool		is_template = false;

	if (!may_create_databases())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (HeapTupleIsValid(tuple))
	{
		is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return is_template || outbox_database_ownercheck(dboid);
}

/*
 * The database that a command needs empty, InvalidOid if it needs none.
 *
 * Whoever may not run the command shall not be able to stop a worker with it,
 * hence the checks of privilege; core repeats them and raises the error.
 */
static Oid
database_to_empty(Node *parsetree)
{
	const char *name = NULL;
	bool		copies = false;
	Oid			dboid;

	switch (nodeTag(parsetree))
	{
		case T_DropdbStmt:
			name = ((DropdbStmt *) parsetree)->dbname;
			break;
		case T_RenameStmt:
			if (((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE)
				name = ((RenameStmt *) parsetree)->subname;
			break;
		case T_AlterDatabaseStmt:
			if (database_option(((AlterDatabaseStmt *) parsetree)->options, "tablespace"))
				name = ((AlterDatabaseStmt *) parsetree)->dbname;
			break;
		case T_CreatedbStmt:
			copies = true;
			name = database_option(((CreatedbStmt *) parsetree)->options, "template");
			if (name == NULL)
				name = "template1";
			break;
		default:
			break;
	}

	if (name == NULL)
		return InvalidOid;
	dboid = get_database_oid(name, true);
	if (OidIsValid(dboid) && (copies ? may_copy(dboid) : outbox_database_ownercheck(dboid)))
		return dboid;
	return InvalidOid;
}

/*
 * Keep workers out of a database (pid of this backend), or let them in again
 * (0); a database that is gone gives its slot back.
 */
static void
set_quiesced(Oid dboid, pid_t pid, bool dropped)
{
	OutboxSlot *slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = outbox_shmem_find(dboid);
	/* Somebody else's mark is not ours to take back. */
	if (slot != NULL && (pid != 0 || slot->quiesced_by == MyProcPid))
	{
		slot->quiesced_by = pid;
		slot->next_start = 0;
		if (dropped && slot->pid == 0)
			outbox_shmem_clear(slot);
	}
	LWLockRelease(outbox_shared->lock);
	outbox_shmem_wake_worker(dboid);
	outbox_shmem_wake_launcher();
}

/* Is the worker of a database there?  If it is, tell it to end, if asked to. */
static bool
worker_is_there(Oid dboid, bool terminate)
{
	OutboxSlot *slot;
	bool		result;

	LWLockAcquire(outbox_shared->lock, LW_SHARED);
	slot = outbox_shmem_find(dboid);
	result = slot != NULL && slot->pid != 0;
	/* It gives its slot back under the lock, so the pid is not yet another's. */
	if (result && terminate)
		kill(slot->pid, SIGTERM);
	LWLockRelease(outbox_shared->lock);
	return result;
}

/*
 * Wait until the worker has left.  One that is just connecting may wait for a
 * lock on the database, which an earlier command of this transaction or of
 * another has; there it looks at nothing but signals.
 *
 * If it does not leave, go on: core then raises its own error about a database
 * in use.
 */
static void
wait_for_worker_to_leave(Oid dboid)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz now = start;
	bool		terminated = false;

	while (!TimestampDifferenceExceeds(start, now, QUIESCE_TIMEOUT_MS))
	{
		bool		terminate = !terminated &&
			TimestampDifferenceExceeds(start, now, TERMINATE_AFTER_MS);

		if (!worker_is_there(dboid, terminate))
			return;
		terminated |= terminate;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 5, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		now = GetCurrentTimestamp();
	}
}

/* Whatever a transaction of ours may have left to be done at its commit. */
static void
commit_prepared(void)
{
	OutboxSlot *slot;

	outbox_wake_worker_at_commit();
	outbox_wake_control_at_commit();
	/*
	 * It may have been CREATE EXTENSION, unless a worker has found that already: to say
	 * so again would start one at once that is to wait after a failure.
	 */
	slot = outbox_shmem_find(MyDatabaseId);
	if (outbox_shared != NULL && (slot == NULL || !slot->looked) &&
		OidIsValid(get_extension_oid("outbox", true)))
		outbox_wake_launcher_at_commit();
}

static void
call_next(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
		  ProcessUtilityContext context, ParamListInfo params,
		  QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (next_ProcessUtility)
		next_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
							queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
								queryEnv, dest, qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *parsetree = pstmt->utilityStmt;
	Oid			dboid = database_to_empty(parsetree);
	volatile bool dropped = false;

	if (IsA(parsetree, DropStmt) &&
		((DropStmt *) parsetree)->removeType == OBJECT_EXTENSION)
		outbox_wake_control_at_commit();

	if (IsA(parsetree, CreatedbStmt))
		outbox_wake_scan_at_commit();

	/* The launcher may be about to look into it for the first time. */
	if (OidIsValid(dboid) && IsA(parsetree, DropdbStmt))
		(void) outbox_shmem_claim(dboid, false);

	if (!OidIsValid(dboid) || outbox_shmem_find(dboid) == NULL)
	{
		call_next(pstmt, queryString, readOnlyTree, context, params,
				  queryEnv, dest, qc);
		if (IsA(parsetree, TransactionStmt) &&
			((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED)
			commit_prepared();
		return;
	}

	set_quiesced(dboid, MyProcPid, false);
	PG_TRY();
	{
		wait_for_worker_to_leave(dboid);
		call_next(pstmt, queryString, readOnlyTree, context, params,
				  queryEnv, dest, qc);
		dropped = IsA(parsetree, DropdbStmt);
	}
	PG_FINALLY();
	{
		set_quiesced(dboid, 0, dropped);
	}
	PG_END_TRY();
}

void
outbox_utility_init(void)
{
	next_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
