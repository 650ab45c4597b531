/*
 * control.c
 *		Owns the table outbox.control and the functions by which an operator
 *		steers the worker: each changes the table in the caller's transaction
 *		and wakes the worker at commit.
 *
 *		The table also knows the database it was installed in. In a copy made
 *		by CREATE DATABASE ... TEMPLATE that is another one: the messages in it
 *		are the original's, which publishes them itself, so the worker of the
 *		copy publishes nothing until outbox.adopt().
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "control.h"
#include "progress.h"
#include "cursor.h"
#include "query.h"
#include "segment.h"
#include "settings.h"
#include "shmem.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(outbox_pause);
PG_FUNCTION_INFO_V1(outbox_resume);
PG_FUNCTION_INFO_V1(outbox_reload);
PG_FUNCTION_INFO_V1(outbox_announce);
PG_FUNCTION_INFO_V1(outbox_skip_to_now);

static OutboxQuery read_query = {
	"SELECT paused, database FROM outbox.control",
	0, {0}
};

/* A copy with nothing in it that the original could be publishing is nobody else's. */
static OutboxQuery adopt_query = {
	"UPDATE outbox.control SET database = $1 WHERE database <> $1"
	" AND NOT EXISTS (SELECT FROM outbox.deferred)"
	" AND one IN (SELECT one FROM outbox.control FOR UPDATE SKIP LOCKED)",
	1, {OIDOID}
};

void
outbox_control_adopt_if_empty(void)
{
	Datum		args[1] = {ObjectIdGetDatum(MyDatabaseId)};

	if (!outbox_segment_is_settled(OUTBOX_ALL_SEGMENTS))
		return;
	(void) outbox_query_run(&adopt_query, args);
	outbox_query_done();
}

OutboxControl
outbox_control_read(void)
{
	OutboxControl control = {false, false};
	bool		isnull;

	if (outbox_query_run(&read_query, NULL) > 0)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		control.paused = DatumGetBool(SPI_getbinval(tuple, desc, 1, &isnull));
		control.foreign = DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull)) != MyDatabaseId;
	}
	outbox_query_done();
	return control;
}

static void
set_paused(bool paused)
{
	Oid			types[1] = {BOOLOID};
	Datum		values[1] = {BoolGetDatum(paused)};

	SPI_connect();
	/* The row is there, unless somebody has deleted it. */
	if (SPI_execute_with_args("INSERT INTO outbox.control AS c (paused, database)"
							  " SELECT $1, d.oid FROM pg_catalog.pg_database d"
							  " WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"
							  " ON CONFLICT (one) DO UPDATE SET paused = $1"
							  " WHERE c.paused OPERATOR(pg_catalog.<>) $1",
							  1, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not update outbox.control");
	SPI_finish();
	outbox_wake_control_at_commit();
}

/* outbox.pause(): publish nothing until outbox.resume(). */
Datum
outbox_pause(PG_FUNCTION_ARGS)
{
	set_paused(true);
	PG_RETURN_VOID();
}

/* outbox.resume(): undo outbox.pause(). */
Datum
outbox_resume(PG_FUNCTION_ARGS)
{
	set_paused(false);
	PG_RETURN_VOID();
}

/*
 * outbox.reload(): restart the worker, so that it connects anew and reads what
 * ALTER DATABASE ... SET left for new sessions. One that waits after failures is
 * started at once.
 */
Datum
outbox_reload(PG_FUNCTION_ARGS)
{
	OutboxSlot *slot = outbox_shmem_find(MyDatabaseId);

	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no outbox worker for this database"),
				 outbox_shared == NULL ?
				 errhint("outbox must be in shared_preload_libraries.") :
				 errhint("If the server log says that no worker slot is free, raise outbox.max_databases (now %d) and restart the server.",
						 outbox_max_databases)));
	pg_atomic_write_u32(&slot->reload, 1);
	outbox_shmem_wake_worker(MyDatabaseId);
	outbox_shmem_forgive(MyDatabaseId);
	PG_RETURN_VOID();
}

/*
 * outbox.skip_to_now(): the part of outbox.adopt() that SQL cannot do; the
 * caller has locked the segments and moved what was pending elsewhere.
 */
Datum
outbox_skip_to_now(PG_FUNCTION_ARGS)
{
	outbox_progress_skip_to_now();
	outbox_wake_control_at_commit();
	PG_RETURN_VOID();
}

/* outbox.announce(): called by the install script. */
Datum
outbox_announce(PG_FUNCTION_ARGS)
{
	if (outbox_shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("outbox is not in shared_preload_libraries"),
				 errdetail("Messages are stored, but nothing publishes them."),
				 errhint("Add outbox to shared_preload_libraries and restart the server.")));
	else if (!outbox_shmem_claim(MyDatabaseId, false))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no outbox worker is free for this database"),
				 errdetail("Messages are stored, but nothing publishes them."),
				 errhint("Raise outbox.max_databases (now %d) and restart the server.",
						 outbox_max_databases)));
	else
		outbox_wake_launcher_at_commit();
	PG_RETURN_VOID();
}
