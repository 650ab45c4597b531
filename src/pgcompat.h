/*
 * pgcompat.h
 *		The prelude of every source file, and the only place that may say
 *		PG_VERSION_NUM: what differs between PostgreSQL 15 and 19 is given one
 *		name here.
 */
#ifndef OUTBOX_PGCOMPAT_H
#define OUTBOX_PGCOMPAT_H

#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/wait_event.h"

/* Index of this process in ProcGlobal->allProcs. */
#if PG_VERSION_NUM >= 170000
#define outbox_my_procno() ((int) MyProcNumber)
#else
#define outbox_my_procno() (MyProc->pgprocno)
#endif

/* Lowest xid whose commit status can still be looked up. */
#if PG_VERSION_NUM >= 170000
#define outbox_oldest_clog_xid() (TransamVariables->oldestClogXid)
#else
#define outbox_oldest_clog_xid() (ShmemVariableCache->oldestClogXid)
#endif

#if PG_VERSION_NUM >= 170000
#define outbox_create_wait_event_set(nevents) CreateWaitEventSet(NULL, (nevents))
#else
#define outbox_create_wait_event_set(nevents) \
	CreateWaitEventSet(TopMemoryContext, (nevents))
#endif

/* Named wait events exist from 17 on. */
#if PG_VERSION_NUM >= 170000
#define outbox_wait_event(name) WaitEventExtensionNew(name)
#else
#define outbox_wait_event(name) PG_WAIT_EXTENSION
#endif

#if PG_VERSION_NUM >= 180000
#define outbox_conditional_lock_tuple(rel, tid, mode) \
	ConditionalLockTuple((rel), (tid), (mode), false)
#else
#define outbox_conditional_lock_tuple(rel, tid, mode) \
	ConditionalLockTuple((rel), (tid), (mode))
#endif

#if PG_VERSION_NUM < 160000
#define RelationSetNewRelfilenumber(rel, persistence) \
	RelationSetNewRelfilenode((rel), (persistence))
#endif

static inline void
outbox_reindex_relation(Oid relid)
{
	ReindexParams params = {0};

#if PG_VERSION_NUM >= 170000
	reindex_relation(NULL, relid, REINDEX_REL_PROCESS_TOAST, &params);
#else
	reindex_relation(relid, REINDEX_REL_PROCESS_TOAST, &params);
#endif
}

static inline bool
outbox_database_ownercheck(Oid dboid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, dboid, GetUserId());
#else
	return pg_database_ownercheck(dboid, GetUserId());
#endif
}

#endif							/* OUTBOX_PGCOMPAT_H */
