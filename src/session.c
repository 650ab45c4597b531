/*
 * session.c
 *		Owns the worker's transactions: each is short, holds its locks only
 *		while it works, and is over before anything waits for the network.
 *
 *		Locks are taken by ConditionalLockRelationOid() on all tables, before any
 *		is touched. If one cannot be had (DROP EXTENSION, ALTER TABLE, REINDEX, an
 *		operator's LOCK), the transaction ends at once and the worker goes on
 *		serving the connection. They are those of a writer, also for what is only
 *		read: REINDEX lets readers of the table in, and makes them wait for the
 *		index. With the locks
 *		held, tables that an invalidation may have been about are looked at again
 *		(take_tables).
 */
#include "pgcompat.h"

#include "access/relation.h"
#include "access/xact.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "pgstat.h"

#include "catalog.h"
#include "session.h"

/* The sequences as well: pg_sequence_last_value() takes this lock, and would wait for it. */
static const char *const tables[] = {
	"message_0", "message_1", "message_2", "message_3",
	"message_id_seq", "deferred_place_seq",
	"progress_0", "progress_1", "deferred", "dead_letter", "control"
};

/* OIDs as of the worker's start: a table dropped and made anew is another one. */
static Oid	oids[lengthof(tables)];

/*
 * Whatever may have been done to them so far, and how much of it there was when they
 * were last seen to be as they must be.
 */
static uint64 changes = 1;
static uint64 checked_changes = 0;

/* The one that was last found to be gone. */
static const char *gone_name = "";

/*
 * What ALTER DATABASE or ALTER ROLE may have set would apply to the worker
 * too; it must not time out. Nor must statistics, or their absence, decide how its
 * queries are carried out: there is an index for each, and in its order. That alone
 * forbids no join in which an index is read whole (OUTBOX_IN_ASIDE).
 */
static const char *const overrides[][2] = {
	{"role", "none"},
	{"session_replication_role", "origin"}, /* or our own triggers drop our rows */
	{"search_path", "pg_catalog"},
	{"statement_timeout", "0"},
	{"lock_timeout", "1s"},
	{"idle_in_transaction_session_timeout", "0"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"synchronous_commit", "local"},	/* an absent standby must not stop us */
	{"row_security", "off"},
	{"jit", "off"},
	{"enable_indexscan", "on"},
	{"enable_nestloop", "on"},
	{"enable_hashagg", "on"},
	{"enable_seqscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_mergejoin", "off"},
	{"enable_bitmapscan", "off"},
	{"enable_sort", "off"},
	{"transaction_timeout", "0"},	/* 17 and later */
};

/* A relation was altered, emptied or dropped; InvalidOid: any may have been. */
static void
relation_changed(Datum arg, Oid relid)
{
	bool		is_ours = !OidIsValid(relid);

	for (int i = 0; i < lengthof(oids); i++)
		is_ours = is_ours || oids[i] == relid;
	if (is_ours)
		changes++;
}

static void
schema_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
}

void
outbox_session_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_changed, (Datum) 0);
	for (int i = 0; i < lengthof(overrides); i++)
	{
		if (GetConfigOption(overrides[i][0], true, false) != NULL)
			SetConfigOption(overrides[i][0], overrides[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}

	StartTransactionCommand();
	for (int i = 0; i < lengthof(tables); i++)
		oids[i] = outbox_catalog_table(tables[i]);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

static bool
lock_tables(void)
{
	for (int i = 0; i < lengthof(oids); i++)
	{
		if (OidIsValid(oids[i]) && !ConditionalLockRelationOid(oids[i], RowExclusiveLock))
			return false;
	}
	return true;
}

static bool
check_tables(void)
{
	for (int i = 0; i < lengthof(tables); i++)
	{
		Relation	rel;

		gone_name = tables[i];
		if (!OidIsValid(oids[i]) || (rel = try_relation_open(oids[i], NoLock)) == NULL)
			return false;
		outbox_catalog_check(rel);
		relation_close(rel, NoLock);
		/* Renamed, or in another schema: neither C nor SQL would find it. */
		if (outbox_catalog_table(tables[i]) != oids[i])
			return false;
	}
	return true;
}

/*
 * Each lock that is granted brings the invalidations of whoever held a stronger one
 * before, so that what was checked once need not be looked at until one comes.
 */
static OutboxSession
take_tables(void)
{
	uint64		seen;

	if (!lock_tables())
		return OUTBOX_SESSION_LOCKED;
	if (checked_changes == changes)
		return OUTBOX_SESSION_OPEN;
	seen = changes;
	if (!check_tables())
		return OUTBOX_SESSION_GONE;
	checked_changes = seen;
	return OUTBOX_SESSION_OPEN;
}

const char *
outbox_session_gone_name(void)
{
	return gone_name;
}

OutboxSession
outbox_session_begin(void)
{
	OutboxSession result;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	result = take_tables();
	if (result != OUTBOX_SESSION_OPEN)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(TopMemoryContext);
		return result;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	return OUTBOX_SESSION_OPEN;
}

void
outbox_session_commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
	/* Nobody else flushes the statistics of a background worker. */
	pgstat_report_stat(false);
}
