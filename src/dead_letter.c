/*
 * dead_letter.c
 *		Owns the table outbox.dead_letter: messages that the broker did not
 *		take in outbox.max_attempts attempts, or that no frame of it can carry,
 *		with its last words.
 *
 *		As with deferred.c, a message comes here in the transaction in which
 *		progress passes it, and never earlier.
 */
#include "pgcompat.h"

#include "catalog/pg_type.h"

#include "dead_letter.h"
#include "query.h"

/*
 * It is there already if somebody has deleted rows of progress.  Another with its id is
 * there if this database was restored: ids began anew, and that one must stay.
 */
#define ON_CONFLICT \
	" ON CONFLICT (id, message_id) DO UPDATE SET attempts = excluded.attempts," \
	" last_error = excluded.last_error, died_at = excluded.died_at"

#define INSERT_FROM(segment) { \
	"INSERT INTO outbox.dead_letter (" OUTBOX_MESSAGE_COLUMNS ", attempts, last_error)" \
	" SELECT m.*, a.attempts, nullif(a.last_error, '')" \
	" FROM " OUTBOX_ASIDE_JOIN(segment) \
	ON_CONFLICT " RETURNING ordering_key", \
	6, OUTBOX_ASIDE_TYPES}

static OutboxQuery insert_queries[OUTBOX_SEGMENTS] = {
	INSERT_FROM("message_0"), INSERT_FROM("message_1"),
	INSERT_FROM("message_2"), INSERT_FROM("message_3")
};

static OutboxQuery bury_query = {
	"WITH gone AS (DELETE FROM outbox.deferred d USING " OUTBOX_ASIDE_TABLE
	" WHERE " OUTBOX_IN_ASIDE("d") " RETURNING d.*, a.attempts AS tries, a.last_error AS words)"
	" INSERT INTO outbox.dead_letter (" OUTBOX_MESSAGE_COLUMNS ", attempts, last_error)"
	" SELECT " OUTBOX_MESSAGE_COLUMNS ", tries, coalesce(nullif(words, ''), last_error)"
	" FROM gone" ON_CONFLICT " RETURNING ordering_key",
	6, OUTBOX_ASIDE_TYPES
};

void
outbox_dead_letter_insert(int segment, OutboxAside *aside)
{
	OutboxTouchedKeys none = {NULL};

	outbox_aside_run(&insert_queries[segment], aside, &none);
}

void
outbox_dead_letter_bury(OutboxAside *aside, OutboxTouchedKeys *touched)
{
	outbox_aside_run(&bury_query, aside, touched);
}
