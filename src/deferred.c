/*
 * deferred.c
 *		Owns the table outbox.deferred: messages that wait for deliver_at, for
 *		another attempt, or behind a message with the same ordering key.
 *
 *		A message comes here in the very transaction in which progress passes
 *		it (record.c), never earlier: otherwise a crash in between would send
 *		it twice, or send it and keep it here.
 *
 *		The queue of an ordering key is its rows that are not 'scheduled', in
 *		order of place. Only the first is ever due; the others are due at
 *		infinity. Whoever removes a first row makes the next one due in the
 *		same transaction.
 *
 *		The queue of a destination is the rows that wait for it (reason
 *		'exchange' or 'stalled'), in order of place, all due at infinity: it is
 *		taken up when the destination works again (breaker.c, probe.c). A row
 *		that has an ordering key waits there as the first of its key's queue.
 *
 *		What to take up next is asked in pick.c.
 *
 *		An operator may hold locks on rows here. The worker never waits for
 *		them: outbox_deferred_lock() leaves locked rows for another time.
 */
#include "pgcompat.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "cursor.h"
#include "deferred.h"
#include "query.h"
#include "settings.h"

/* Look at the queues of so many ordering keys at a time: that takes some 20 ms. */
#define PROMOTE_KEYS	2000

#define INSERT_FROM(segment) { \
	"INSERT INTO outbox.deferred (" OUTBOX_MESSAGE_COLUMNS "," \
	" reason, due_at, attempts, last_error, place)" \
	" SELECT m.*, a.reason, a.due_at, a.attempts, nullif(a.last_error, ''), a.place" \
	" FROM " OUTBOX_ASIDE_JOIN(segment) \
	/* It is there already if somebody has deleted rows of progress. */ \
	" ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, due_at = excluded.due_at," \
	" attempts = excluded.attempts, last_error = excluded.last_error, place = excluded.place" \
	" RETURNING ordering_key", \
	6, OUTBOX_ASIDE_TYPES}

static OutboxQuery insert_queries[OUTBOX_SEGMENTS] = {
	INSERT_FROM("message_0"), INSERT_FROM("message_1"),
	INSERT_FROM("message_2"), INSERT_FROM("message_3")
};

static OutboxQuery update_query = {
	"UPDATE outbox.deferred d SET reason = a.reason, due_at = a.due_at,"
	" attempts = a.attempts, last_error = coalesce(nullif(a.last_error, ''), d.last_error),"
	" place = coalesce(nullif(a.place, 0), d.place)"
	" FROM " OUTBOX_ASIDE_TABLE " WHERE " OUTBOX_IN_ASIDE("d") " RETURNING ordering_key",
	6, OUTBOX_ASIDE_TYPES
};

static OutboxQuery delete_query = {
	"DELETE FROM outbox.deferred WHERE id = ANY ($1) RETURNING ordering_key",
	1, {INT8ARRAYOID}
};

static OutboxQuery lock_query = {
	"SELECT id FROM outbox.deferred WHERE id = ANY ($1) ORDER BY id FOR UPDATE SKIP LOCKED",
	1, {INT8ARRAYOID}
};

static OutboxQuery exist_query = {
	"SELECT id FROM outbox.deferred WHERE id = ANY ($1) ORDER BY id",
	1, {INT8ARRAYOID}
};

#define TOUCHED_KEYS "(SELECT DISTINCT unnest($1)) t (k)"

#define FIRST_OF_QUEUE \
	"(SELECT q.id FROM outbox.deferred q WHERE q.ordering_key = k" \
	" AND q.reason <> 'scheduled' ORDER BY q.place LIMIT 1)"

/*
 * Rows that an operator has locked are passed over: waiting for them would end the worker.
 *
 * From the key to the first of its queue to its row, whatever the statistics say, and
 * never the other way round: arrays, not joins (see OUTBOX_IN_ASIDE), and beside the id
 * or the key nothing that an index could answer.
 */
static OutboxQuery promote_query = {
	"UPDATE outbox.deferred SET due_at = now() WHERE id = ANY (ARRAY("
	"SELECT d.id FROM outbox.deferred d"
	" WHERE d.id = ANY (ARRAY(SELECT " FIRST_OF_QUEUE " FROM " TOUCHED_KEYS "))"
	" AND NOT isfinite(d.due_at) AND d.reason IN ('retry', 'behind')"
	" FOR UPDATE SKIP LOCKED))",
	1, {TEXTARRAYOID}
};

/* From key to key by the index, not from row to row: a queue may be long. */
#define QUEUED(comparison, key) \
	"(SELECT n.ordering_key FROM outbox.deferred n WHERE n.ordering_key IS NOT NULL" \
	" AND n.reason <> 'scheduled' AND n.ordering_key " comparison " " key \
	" ORDER BY n.ordering_key LIMIT 1)"

static OutboxQuery queued_keys_query = {
	"WITH RECURSIVE queued (key, number) AS (SELECT " QUEUED(">=", "$1") ", 1"
	" UNION ALL SELECT " QUEUED(">", "queued.key") ", number + 1"
	" FROM queued WHERE queued.key IS NOT NULL AND number < $2)"
	" SELECT key FROM queued WHERE key IS NOT NULL",
	2, {TEXTOID, INT4OID}
};

/*
 * Several of a key in flight may have been refused: only the first keeps its
 * time, the others wait behind it.
 */
static OutboxQuery demote_query = {
	"UPDATE outbox.deferred SET due_at = 'infinity' WHERE id = ANY (ARRAY("
	"SELECT r.id FROM " TOUCHED_KEYS ", LATERAL (SELECT d.id FROM outbox.deferred d"
	" WHERE d.ordering_key = k AND d.id <> " FIRST_OF_QUEUE
	" AND d.reason = 'retry' AND isfinite(d.due_at) FOR UPDATE SKIP LOCKED) r))",
	1, {TEXTARRAYOID}
};

static OutboxQuery queue_query = {
	"SELECT 1 FROM outbox.deferred WHERE ordering_key = $1 AND reason <> 'scheduled' LIMIT 1",
	1, {TEXTOID}
};

static OutboxQuery any_queue_query = {
	"SELECT 1 FROM outbox.deferred WHERE ordering_key IS NOT NULL"
	" AND reason <> 'scheduled' LIMIT 1",
	0, {0}
};

void
outbox_aside_add(OutboxAside *aside, int64 id, const char *reason,
				 TimestampTz due, int attempts, const char *error, int64 place)
{
	MemoryContext context = CurrentMemoryContext;

#define ADD(array, value, type) \
	(aside->array = accumArrayResult(aside->array, (value), false, (type), context))
	ADD(ids, Int64GetDatum(id), INT8OID);
	ADD(reasons, CStringGetTextDatum(reason), TEXTOID);
	ADD(due, TimestampTzGetDatum(due), TIMESTAMPTZOID);
	ADD(attempts, Int32GetDatum(attempts), INT4OID);
	ADD(errors, CStringGetTextDatum(error ? error : ""), TEXTOID);
	ADD(places, Int64GetDatum(place), INT8OID);
#undef ADD
	aside->count++;
}

TimestampTz
outbox_deferred_retry_at(TimestampTz now, int attempts)
{
	double		delay = ldexp(outbox_retry_delay_min, Min(attempts - 1, 30));
	/* Varied, so that many do not come back at once. */
	double		factor = 0.8 + 0.4 * pg_prng_double(&pg_global_prng_state);

	delay = Min(delay, (double) Max(outbox_retry_delay_max, outbox_retry_delay_min));
	return TimestampTzPlusMilliseconds(now, (int64) (delay * factor));
}

int64
outbox_deferred_new_place(void)
{
	return nextval_internal(outbox_catalog_table("deferred_place_seq"), false);
}

/* Once: it takes what was collected with it. */
static Datum
as_array(ArrayBuildState *array)
{
	return makeArrayResult(array, CurrentMemoryContext);
}

/* Collect the ordering keys that a statement returned. */
static void
collect_keys(OutboxTouchedKeys *touched, uint64 rows, MemoryContext context)
{
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		Datum		key = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			touched->keys = accumArrayResult(touched->keys, key, false, TEXTOID, context);
	}
}

void
outbox_aside_run(OutboxQuery *query, OutboxAside *aside, OutboxTouchedKeys *touched)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		args[6];
	uint64		rows;

	if (aside->count == 0)
		return;
	args[0] = as_array(aside->ids);
	args[1] = as_array(aside->reasons);
	args[2] = as_array(aside->due);
	args[3] = as_array(aside->attempts);
	args[4] = as_array(aside->errors);
	args[5] = as_array(aside->places);
	rows = outbox_query_run(query, args);
	/* Never pass over a message that is not where it is to be found next. */
	if (rows != aside->count)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("only %d of %d messages could be set aside", (int) rows, aside->count),
				 errdetail("Somebody has deleted or changed rows of the extension's tables, or a trigger suppresses changes of them.")));
	collect_keys(touched, rows, context);
	outbox_query_done();
}

void
outbox_deferred_insert(int segment, OutboxAside *aside, OutboxTouchedKeys *touched)
{
	outbox_aside_run(&insert_queries[segment], aside, touched);
}

void
outbox_deferred_update(OutboxAside *aside, OutboxTouchedKeys *touched)
{
	outbox_aside_run(&update_query, aside, touched);
}

void
outbox_deferred_delete(ArrayBuildState *ids, OutboxTouchedKeys *touched)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		args[1];

	if (ids == NULL)
		return;
	args[0] = as_array(ids);
	collect_keys(touched, outbox_query_run(&delete_query, args), context);
	outbox_query_done();
}

void
outbox_deferred_promote(OutboxTouchedKeys *touched, bool several_per_key)
{
	Datum		args[1];

	if (touched->keys == NULL)
		return;
	args[0] = as_array(touched->keys);
	if (several_per_key || outbox_in_flight_per_key > 1)
	{
		(void) outbox_query_run(&demote_query, args);
		outbox_query_done();
	}
	(void) outbox_query_run(&promote_query, args);
	outbox_query_done();
}

void
outbox_deferred_promote_some(char *from, bool several_per_key)
{
	OutboxTouchedKeys queued = {NULL};
	MemoryContext context = CurrentMemoryContext;
	Datum		args[2];
	uint64		rows;

	args[0] = CStringGetTextDatum(from);
	args[1] = Int32GetDatum(PROMOTE_KEYS);
	rows = outbox_query_run(&queued_keys_query, args);
	collect_keys(&queued, rows, context);
	/* The last is looked at again as the first next time, which does no harm. */
	if (rows < PROMOTE_KEYS)
		from[0] = '\0';
	else
		strlcpy(from, SPI_getvalue(SPI_tuptable->vals[rows - 1], SPI_tuptable->tupdesc, 1),
				OUTBOX_KEY_SIZE);
	outbox_query_done();
	outbox_deferred_promote(&queued, several_per_key);
}

/* The ids that a query returns, in the current context. */
static OutboxIds
collect_ids(OutboxQuery *query, Datum *args)
{
	MemoryContext context = CurrentMemoryContext;
	OutboxIds	set;

	set.count = outbox_query_run(query, args);
	set.ids = MemoryContextAlloc(context, Max(1, set.count) * sizeof(int64));
	for (int i = 0; i < set.count; i++)
	{
		bool		isnull;

		set.ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
												 SPI_tuptable->tupdesc, 1, &isnull));
	}
	outbox_query_done();
	return set;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

bool
outbox_ids_contain(const OutboxIds *set, int64 id)
{
	return bsearch(&id, set->ids, set->count, sizeof(int64), compare_ids) != NULL;
}

void
outbox_deferred_lock(ArrayBuildState *ids, OutboxIds *locked, OutboxIds *all)
{
	int			count = ids->nelems;	/* as_array() frees it */
	Datum		args[1];

	args[0] = as_array(ids);
	*locked = collect_ids(&lock_query, args);
	*all = *locked;
	if (locked->count < count)
		*all = collect_ids(&exist_query, args);
}

bool
outbox_deferred_has_queue(OutboxBytes key)
{
	Datum		args[1];
	bool		result;

	args[0] = PointerGetDatum(cstring_to_text_with_len(key.data, key.len));
	result = outbox_query_run(&queue_query, args) > 0;
	outbox_query_done();
	return result;
}

bool
outbox_deferred_has_queues(void)
{
	bool		result = outbox_query_run(&any_queue_query, NULL) > 0;

	outbox_query_done();
	return result;
}
