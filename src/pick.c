/*
 * pick.c
 *		What to take up next of the table outbox.deferred (deferred.c), whose
 *		rows it reads and never changes: those that are due, and the queue of a
 *		destination that works again.
 *
 *		Rows that somebody has in hand already, in the batch, on the probe's
 *		connection, or settled and not recorded, are passed over.
 *
 *		On entry: a session is open.
 */
#include "pgcompat.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "pick.h"
#include "query.h"

/* Read so many rows that are due, and so many behind each, at a time. */
#define PICK_ROWS 100
#define FOLLOWERS 200

/* Behind $1 and $2: before it may lie a million that are gone, if somebody holds a snapshot. */
static OutboxQuery due_query = {
	"SELECT * FROM outbox.deferred WHERE (due_at, place) > ($1, $2) AND due_at <= $3"
	" ORDER BY due_at, place LIMIT $4",
	4, {TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID}
};

static OutboxQuery follow_query = {
	"SELECT * FROM outbox.deferred WHERE ordering_key = $1 AND reason <> 'scheduled'"
	" AND place > $2 ORDER BY place LIMIT $3",
	3, {TEXTOID, INT8OID, INT8OID}
};

static OutboxQuery waiting_query[] = {
	[OUTBOX_SCOPE_EXCHANGE] = {
		"SELECT * FROM outbox.deferred WHERE reason = 'exchange' AND exchange = $1"
		" AND place > $3 AND $2 = '' ORDER BY place LIMIT $4",
		4, {TEXTOID, TEXTOID, INT8OID, INT8OID}
	},
	[OUTBOX_SCOPE_ROUTE] = {
		"SELECT * FROM outbox.deferred WHERE reason = 'stalled' AND exchange = $1"
		" AND routing_key = $2 AND place > $3 ORDER BY place LIMIT $4",
		4, {TEXTOID, TEXTOID, INT8OID, INT8OID}
	}
};

/* From name to name by the index, not from row to row: a queue may be long. */
static OutboxQuery destinations_query[] = {
	[OUTBOX_SCOPE_EXCHANGE] = {
		"WITH RECURSIVE e AS ((SELECT exchange FROM outbox.deferred WHERE reason = 'exchange'"
		" ORDER BY exchange LIMIT 1) UNION ALL SELECT n.exchange FROM e, LATERAL"
		" (SELECT d.exchange FROM outbox.deferred d WHERE d.reason = 'exchange'"
		" AND d.exchange > e.exchange ORDER BY d.exchange LIMIT 1) n)"
		" SELECT exchange, ''::text FROM e LIMIT $1",
		1, {INT8OID}
	},
	[OUTBOX_SCOPE_ROUTE] = {
		"WITH RECURSIVE r AS ((SELECT exchange, routing_key FROM outbox.deferred"
		" WHERE reason = 'stalled' ORDER BY exchange, routing_key LIMIT 1)"
		" UNION ALL SELECT n.exchange, n.routing_key FROM r, LATERAL"
		" (SELECT d.exchange, d.routing_key FROM outbox.deferred d WHERE d.reason = 'stalled'"
		" AND (d.exchange, d.routing_key) > (r.exchange, r.routing_key)"
		" ORDER BY d.exchange, d.routing_key LIMIT 1) n)"
		" SELECT exchange, routing_key FROM r LIMIT $1",
		1, {INT8OID}
	}
};

static OutboxQuery next_query = {
	"SELECT due_at FROM outbox.deferred WHERE due_at > $1 AND due_at < 'infinity'"
	" ORDER BY due_at LIMIT 1",
	1, {TIMESTAMPTZOID}
};

static TimestampTz
next_due(TimestampTz now)
{
	Datum		args[1];
	TimestampTz result = DT_NOEND;
	bool		isnull;

	args[0] = TimestampTzGetDatum(now);
	if (outbox_query_run(&next_query, args) > 0)
		result = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
												   SPI_tuptable->tupdesc, 1, &isnull));
	outbox_query_done();
	return result;
}

/* Where a row of the current result stands in the order of the due ones. */
static OutboxDuePlace
place_of(uint64 row)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	OutboxDuePlace result;
	bool		isnull;

	result.due_at = DatumGetTimestampTz(SPI_getbinval(tuple, desc, Anum_deferred_due_at, &isnull));
	result.place = DatumGetInt64(SPI_getbinval(tuple, desc, Anum_deferred_place, &isnull));
	return result;
}

/* Hand one row of the current result on; false: it is busy. */
static bool
take_row(uint64 row, struct HTAB *busy, OutboxTake take, void *arg,
		 OutboxMessage *message, bool *in_queue, OutboxTaken *taken)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum		reason = SPI_getbinval(tuple, desc, Anum_deferred_reason, &isnull);

	*in_queue = strcmp(TextDatumGetCString(reason), "scheduled") != 0;
	outbox_message_from_tuple(message, tuple, desc, OUTBOX_DEFERRED);
	if (hash_search(busy, &message->id, HASH_FIND, NULL) != NULL)
		return false;
	*taken = take(arg, message, *in_queue);
	return true;
}

/*
 * Take some of those that wait behind a message of a queue as well: they go out
 * one by one as those before are confirmed, without a record in between.  One
 * that is busy, or is set aside, ends the run: what comes behind it must not
 * pass it.
 */
static OutboxTaken
take_followers(const OutboxMessage *head, int64 place, struct HTAB *busy,
			   OutboxTake take, void *arg)
{
	Datum		args[3];
	uint64		rows;
	OutboxTaken taken = OUTBOX_TAKEN;

	args[0] = PointerGetDatum(cstring_to_text_with_len(head->ordering_key.data,
													   head->ordering_key.len));
	args[1] = Int64GetDatum(place);
	args[2] = Int64GetDatum(FOLLOWERS);
	rows = outbox_query_run(&follow_query, args);
	for (uint64 i = 0; i < rows && taken == OUTBOX_TAKEN; i++)
	{
		OutboxMessage message;
		bool		in_queue;

		if (!take_row(i, busy, take, arg, &message, &in_queue, &taken))
			break;
	}
	outbox_query_done();
	return taken;
}

/* Hand on the rows of the current result, each with those behind it. */
static OutboxPicked
take_rows(uint64 rows, struct HTAB *busy, OutboxTake take, void *arg)
{
	OutboxPicked picked = {0};

	while (picked.passed < rows && !picked.full)
	{
		OutboxMessage message;
		OutboxTaken taken;
		bool		in_queue;

		if (take_row(picked.passed, busy, take, arg, &message, &in_queue, &taken))
		{
			picked.full = taken == OUTBOX_TAKEN_NOT;
			if (picked.full)
				break;
			picked.count++;
			if (taken == OUTBOX_TAKEN && in_queue && message.ordering_key.data)
				picked.full = take_followers(&message, place_of(picked.passed).place,
											 busy, take, arg) == OUTBOX_TAKEN_NOT;
		}
		picked.passed++;
	}
	return picked;
}

/* The next rows that are due, behind *after, which is moved on; picked.end: there are no more. */
static OutboxPicked
pick_some_due(TimestampTz now, OutboxDuePlace *after, struct HTAB *busy, OutboxTake take, void *arg)
{
	Datum		args[4];
	uint64		rows;
	OutboxPicked picked;

	args[0] = TimestampTzGetDatum(after->due_at);
	args[1] = Int64GetDatum(after->place);
	args[2] = TimestampTzGetDatum(now);
	args[3] = Int64GetDatum(PICK_ROWS);
	rows = outbox_query_run(&due_query, args);
	picked = take_rows(rows, busy, take, arg);
	if (picked.passed > 0)
		*after = place_of(picked.passed - 1);
	picked.end = rows < PICK_ROWS && !picked.full;
	outbox_query_done();
	return picked;
}

TimestampTz
outbox_pick_due(TimestampTz now, OutboxDuePlace *after, struct HTAB *busy, OutboxTake take, void *arg)
{
	OutboxPicked picked;

	/* Past all that are busy, or a look that begins anew with each poll might not come behind them. */
	do
	{
		picked = pick_some_due(now, after, busy, take, arg);
	} while (picked.count == 0 && !picked.full && !picked.end);
	if (!picked.end)
		return now;
	after->due_at = now;
	after->place = PG_INT64_MIN;
	return next_due(now);
}

OutboxPicked
outbox_pick_waiting(const OutboxDestination *destination, int64 *place, int limit,
					struct HTAB *busy, OutboxTake take, void *arg)
{
	Datum		args[4];
	uint64		rows;
	OutboxPicked picked;

	args[0] = CStringGetTextDatum(destination->exchange);
	args[1] = CStringGetTextDatum(destination->routing_key);
	args[2] = Int64GetDatum(*place);
	args[3] = Int64GetDatum(limit);
	rows = outbox_query_run(&waiting_query[destination->scope], args);
	picked = take_rows(rows, busy, take, arg);
	if (picked.passed > 0)
		*place = place_of(picked.passed - 1).place;
	picked.end = rows < limit && !picked.full;
	outbox_query_done();
	return picked;
}

void
outbox_pick_destinations(int limit, OutboxFound found, void *arg)
{
	Datum		args[1];

	args[0] = Int64GetDatum(limit);
	for (int scope = OUTBOX_SCOPE_EXCHANGE; scope <= OUTBOX_SCOPE_ROUTE; scope++)
	{
		uint64		rows = outbox_query_run(&destinations_query[scope], args);

		for (uint64 i = 0; i < rows; i++)
		{
			HeapTuple	tuple = SPI_tuptable->vals[i];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			OutboxDestination destination;
			char	   *exchange = SPI_getvalue(tuple, desc, 1);
			char	   *routing_key = SPI_getvalue(tuple, desc, 2);

			memset(&destination, 0, sizeof(destination));
			destination.scope = scope;
			strlcpy(destination.exchange, exchange, OUTBOX_NAME_SIZE);
			strlcpy(destination.routing_key, routing_key, OUTBOX_NAME_SIZE);
			found(arg, &destination);
		}
		outbox_query_done();
	}
}
