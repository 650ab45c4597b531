/*
 * deferred.h
 *		Messages set aside until they are due.
 */
#ifndef OUTBOX_DEFERRED_H
#define OUTBOX_DEFERRED_H

#include "batch.h"
#include "utils/array.h"

/* Columns of the messages that one statement sets aside. */
typedef struct OutboxAside
{
	int			count;
	ArrayBuildState *ids;
	ArrayBuildState *reasons;	/* scheduled, retry, behind, exchange, stalled */
	ArrayBuildState *due;
	ArrayBuildState *attempts;
	ArrayBuildState *errors;	/* '' for none */
	ArrayBuildState *places;	/* 0: the one it has */
} OutboxAside;

/* The same as a table in SQL. */
#define OUTBOX_ASIDE_TYPES \
	{INT8ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID, INT8ARRAYOID}
#define OUTBOX_ASIDE_TABLE \
	"unnest($1, $2, $3, $4, $5, $6) a (id, reason, due_at, attempts, last_error, place)"

/*
 * Joins a message to its row there: an index scan for each, whatever the statistics say
 * of the table. One that VACUUM has seen empty is taken for one row ever after, so that it
 * seems best to read an index of it whole. With "=" that could be the primary key, in the
 * order of a merge; in a segment also the index that has the id as its second column, but
 * for the order that is asked for.
 */
#define OUTBOX_IN_ASIDE(alias) alias ".id = ANY (ARRAY[a.id])"
#define OUTBOX_ASIDE_JOIN(segment) \
	OUTBOX_ASIDE_TABLE " JOIN LATERAL (SELECT * FROM outbox." segment " s" \
	" WHERE s.id >= a.id ORDER BY s.id LIMIT 1) m ON m.id = a.id"

/* The columns that deferred and dead_letter share with a segment. */
#define OUTBOX_MESSAGE_COLUMNS \
	"id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key," \
	" deliver_at, content_type, properties, headers, payload"

/* In the current memory context, which must live until the statement is run. */
extern void outbox_aside_add(OutboxAside *aside, int64 id, const char *reason,
							 TimestampTz due, int attempts, const char *error, int64 place);

/* The next place at the end of all queues. */
extern int64 outbox_deferred_new_place(void);

/* Ordering keys whose queue in deferred a statement has touched. */
typedef struct OutboxTouchedKeys
{
	ArrayBuildState *keys;
} OutboxTouchedKeys;

/*
 * Run a statement that takes the columns of `aside` and returns ordering keys.
 * Raises unless it has changed a row for each.
 */
struct OutboxQuery;
extern void outbox_aside_run(struct OutboxQuery *query, OutboxAside *aside,
							 OutboxTouchedKeys *touched);

/* All of the following within a session. */

/* Move messages from a segment to deferred, in the order they were added. */
extern void outbox_deferred_insert(int segment, OutboxAside *aside, OutboxTouchedKeys *touched);

/* Give messages of deferred another due time, or another place. */
extern void outbox_deferred_update(OutboxAside *aside, OutboxTouchedKeys *touched);

/* Confirmed. */
extern void outbox_deferred_delete(ArrayBuildState *ids, OutboxTouchedKeys *touched);

/*
 * Make the first message of each touched queue due, if it still waits behind
 * another. One that somebody has locked is left to
 * outbox_deferred_promote_some().  several_per_key: some key had several in flight,
 * perhaps before outbox.in_flight_per_key was lowered; then others of a queue may be due
 * as well, and have to wait behind the first.
 */
extern void outbox_deferred_promote(OutboxTouchedKeys *touched, bool several_per_key);

/*
 * The same for queues that nobody has touched, since somebody may have locked or deleted
 * the first of one: those of some keys, beginning with `from` (OUTBOX_KEY_SIZE), which is
 * moved on, and is "" again after the last.  There may be a million of them.
 */
extern void outbox_deferred_promote_some(char *from, bool several_per_key);

/* A set of ids, in order. */
typedef struct OutboxIds
{
	int			count;
	int64	   *ids;
} OutboxIds;

extern bool outbox_ids_contain(const OutboxIds *set, int64 id);

/*
 * Lock those of the messages `ids` that nobody else has locked. *locked and
 * *all are allocated in the current context; *all also has those that are
 * there but locked by somebody else.
 */
extern void outbox_deferred_lock(ArrayBuildState *ids, OutboxIds *locked, OutboxIds *all);

/* In a session of any kind: */

/* Is anything of this key waiting for a retry, or behind one that is? */
extern bool outbox_deferred_has_queue(OutboxBytes key);
extern bool outbox_deferred_has_queues(void);

/* When to try for the time after `attempts`: exponential backoff, with jitter. */
extern TimestampTz outbox_deferred_retry_at(TimestampTz now, int attempts);

#endif							/* OUTBOX_DEFERRED_H */
