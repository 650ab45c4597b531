/*
 * report.c
 *		Owns the words by which the worker tells an operator how it is.
 *
 *		Three places say the same: the slot in shared memory (outbox.status),
 *		the activity string (pg_stat_activity), and the server log, where a
 *		state is written once per change and not once per attempt.
 *
 *		No text that comes here holds a password: the broker's texts name host,
 *		port and vhost only.
 */
#include "pgcompat.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "pgstat.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "confirm.h"
#include "report.h"

#define TROUBLES_MAX		64		/* more than anybody has URIs */
#define TROUBLE_FORGOTTEN_MS 600000 /* not seen for so long, it is news again */
#define BLOCKED_LOG_INTERVAL_MS 10000

/* What is wrong, as far as it has been logged; by hash, the oldest goes first. */
typedef struct Troubles
{
	int			next;
	struct
	{
		uint32		hash;
		TimestampTz seen;		/* last, logged or not */
	}			known[TROUBLES_MAX];
} Troubles;

static OutboxWorkerState shown_state = OUTBOX_WORKER_STOPPED;
static int	shown_unavailable = 0;	/* destinations */
static bool was_ready = false;

/* since the connection last worked; and of channels, which come and go meanwhile */
static Troubles connection_troubles;
static Troubles channel_troubles;

/*
 * A connection that was made, but is lost each time before it is of use, would
 * have "connected" and its loss logged in turn for ever. So after such a loss
 * the next one is called connected in the log once it has proved itself.
 */
static bool in_doubt = false;
static bool answered = false;	/* a message, since the connection was made */

/* Blocked: as it is, and as the log has it. */
static char blocked_why[OUTBOX_ERROR_LEN];	/* empty: not */
static char blocked_logged_why[OUTBOX_ERROR_LEN];
static bool blocked_logged = false;
static TimestampTz blocked_logged_at = 0;

/*
 * Is this trouble not yet in the log, or long forgotten? Numbers do not make a
 * difference ("nothing for 61 s"), but those in quotes, which are of names, do.
 */
static bool
is_news(Troubles *troubles, const char *text)
{
	char		words[OUTBOX_ERROR_LEN];
	size_t		len = 0;
	bool		quoted = false;
	uint32		hash;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz seen;

	for (; *text != '\0' && len < sizeof(words); text++)
	{
		if (*text == '"' || *text == '\'')
			quoted = !quoted;
		if (quoted || *text < '0' || *text > '9')
			words[len++] = *text;
	}
	hash = hash_bytes((const unsigned char *) words, (int) len);

	for (int i = 0; i < TROUBLES_MAX; i++)
	{
		if (troubles->known[i].seen == 0 || troubles->known[i].hash != hash)
			continue;
		seen = troubles->known[i].seen;
		troubles->known[i].seen = now;
		return TimestampDifferenceExceeds(seen, now, TROUBLE_FORGOTTEN_MS);
	}
	troubles->known[troubles->next].hash = hash;
	troubles->known[troubles->next].seen = now;
	troubles->next = (troubles->next + 1) % TROUBLES_MAX;
	return true;
}

void
outbox_report_error(OutboxSlot *slot, const char *text)
{
	/* It holds names, and is shown as text: never cut a character in two. */
	int			len = pg_mbcliplen(text, strlen(text), OUTBOX_ERROR_LEN - 1);

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(slot->last_error, text, len + 1);
	slot->last_error_at = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
}

/* With the reason, where that is what keeps messages from going out. */
static void
show_activity(OutboxSlot *slot)
{
	char		activity[OUTBOX_ERROR_LEN + 64];
	bool		why = shown_state == OUTBOX_WORKER_CONNECTING ||
		shown_state == OUTBOX_WORKER_BLOCKED || shown_unavailable > 0 ||
		(in_doubt && shown_state == OUTBOX_WORKER_PUBLISHING);

	if (why && slot->last_error_at != 0)
		snprintf(activity, sizeof(activity), "%s: %s",
				 outbox_state_name(shown_state), slot->last_error);
	else
		strlcpy(activity, outbox_state_name(shown_state), sizeof(activity));
	pgstat_report_activity(shown_state == OUTBOX_WORKER_IDLE ? STATE_IDLE : STATE_RUNNING,
						   activity);
}

/* The name of the broker as text of this database: that of its virtual host is UTF-8. */
static const char *
broker_name(const OutboxConnections *connections)
{
	static char name[OUTBOX_BROKER_LEN];

	strlcpy(name, outbox_connections_broker_name(connections), sizeof(name));
	outbox_fit_encoding(name);
	return name;
}

static void
show_broker(OutboxSlot *slot, const OutboxConnections *connections)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(slot->broker, broker_name(connections), OUTBOX_BROKER_LEN);
	slot->connected_since = outbox_connections_since(connections);
	LWLockRelease(outbox_shared->lock);
}

static void
log_connected(const OutboxConnections *connections)
{
	ereport(LOG, (errmsg("outbox: connected to RabbitMQ at \"%s\"",
						 broker_name(connections))));
	in_doubt = false;
	memset(&connection_troubles, 0, sizeof(connection_troubles));
}

/*
 * The connection has proved itself: it answered a message, or, as there is none
 * to answer, it has said something at all since it was made.
 */
static bool
has_proved_itself(OutboxSlot *slot, const OutboxConnections *connections)
{
	return was_ready &&
		(answered || (pg_atomic_read_u64(&slot->in_flight) == 0 &&
					  outbox_connections_heard_from(connections)));
}

/*
 * Let the log say whether the broker blocks us. An alarm that comes and goes
 * shall not fill it, but one that stays gets there in the end.
 */
static void
log_blocked(const OutboxConnections *connections)
{
	TimestampTz now;

	if (outbox_connections_state(connections) == OUTBOX_BROKER_READY &&
		!outbox_connections_blocked(connections))
		blocked_why[0] = '\0';
	if (blocked_why[0] == '\0' && blocked_logged)
	{
		blocked_logged = false;
		ereport(LOG, (errmsg("outbox: RabbitMQ at \"%s\" allows publishing again",
							 broker_name(connections))));
	}
	if (blocked_why[0] == '\0' || blocked_logged)
		return;
	now = GetCurrentTimestamp();
	if (strcmp(blocked_why, blocked_logged_why) == 0 &&
		!TimestampDifferenceExceeds(blocked_logged_at, now, BLOCKED_LOG_INTERVAL_MS))
		return;
	blocked_logged = true;
	blocked_logged_at = now;
	strlcpy(blocked_logged_why, blocked_why, sizeof(blocked_logged_why));
	ereport(LOG, (errmsg("outbox: %s", blocked_why),
				  errdetail("Messages are kept until it has enough memory and disk again.")));
}

/* There is no connection: whatever it was blocked by is over. */
static void
forget_connection(void)
{
	was_ready = false;
	blocked_why[0] = '\0';
	blocked_logged = false;
}

void
outbox_report_state(OutboxSlot *slot, OutboxWorkerState state, int unavailable,
					const OutboxConnections *connections)
{
	bool		doubt_ends = in_doubt && has_proved_itself(slot, connections);

	if (doubt_ends)
		log_connected(connections);
	log_blocked(connections);
	if (state == shown_state && unavailable == shown_unavailable && !doubt_ends)
		return;
	shown_state = state;
	shown_unavailable = unavailable;
	if (state == OUTBOX_WORKER_DISABLED)
	{
		/* The next connection is the first of another life. */
		forget_connection();
		in_doubt = false;
		memset(&connection_troubles, 0, sizeof(connection_troubles));
	}
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->state = state;
	LWLockRelease(outbox_shared->lock);
	show_broker(slot, connections);
	show_activity(slot);
}

void
outbox_report_event(OutboxSlot *slot, const OutboxBrokerEvent *event,
					const OutboxConnections *connections)
{
	switch (event->type)
	{
		case OUTBOX_EVENT_READY:
			if (outbox_connections_state(connections) != OUTBOX_BROKER_READY)
				break;
			/* A channel that was reopened is no news. */
			if (!was_ready)
			{
				answered = false;
				if (!in_doubt)
					log_connected(connections);
				if (outbox_connections_since(connections) != slot->connected_since &&
					slot->last_error_at != 0)
					pg_atomic_fetch_add_u64(&slot->reconnects, 1);
			}
			was_ready = true;
			show_broker(slot, connections);
			break;
		case OUTBOX_EVENT_LOST:
			if (was_ready || event->intended)
				in_doubt = !event->intended;
			forget_connection();
			outbox_report_error(slot, event->text);
			if (is_news(&connection_troubles, event->text))
				ereport(LOG, (errmsg("outbox: %s", event->text),
							  errdetail("Messages are kept and will be published once RabbitMQ can be reached.")));
			show_broker(slot, connections);
			show_activity(slot);
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			outbox_report_error(slot, event->text);
			if (is_news(&channel_troubles, event->text))
				ereport(LOG, (errmsg("outbox: RabbitMQ closed the channel: %s", event->text)));
			break;
		case OUTBOX_EVENT_BLOCKED:
			snprintf(blocked_why, sizeof(blocked_why),
					 "RabbitMQ at \"%s\" has blocked publishing: %s",
					 broker_name(connections), event->text);
			outbox_report_error(slot, blocked_why);
			break;
		case OUTBOX_EVENT_RETURN:
			outbox_report_error(slot, event->text);
			break;
		case OUTBOX_EVENT_UNBLOCKED:
		case OUTBOX_EVENT_ACK:
		case OUTBOX_EVENT_NACK:
			break;
	}
}

void
outbox_report_probe_event(const OutboxBrokerEvent *event)
{
	static char probe_logged[OUTBOX_ERROR_LEN];

	if (event->type != OUTBOX_EVENT_LOST ||
		strncmp(probe_logged, event->text, OUTBOX_ERROR_LEN - 1) == 0)
		return;
	strlcpy(probe_logged, event->text, OUTBOX_ERROR_LEN);
	ereport(LOG, (errmsg("outbox: %s", event->text),
				  errdetail("This is the second connection, on which destinations are tried that do not work.")));
}

/* "exchange "x" with routing key "y"", or the exchange alone. */
static void
name_destination(const OutboxDestination *destination, char *name, size_t size)
{
	if (destination->scope == OUTBOX_SCOPE_EXCHANGE)
		snprintf(name, size, "exchange \"%s\"", destination->exchange);
	else
		snprintf(name, size, "exchange \"%s\" with routing key \"%s\"",
				 destination->exchange, destination->routing_key);
}

void
outbox_report_unavailable(OutboxBreaker *breaker, const char *why)
{
	bool		exchange = breaker->destination.scope == OUTBOX_SCOPE_EXCHANGE;
	OutboxSlot *slot = outbox_shmem_find(MyDatabaseId);
	char		name[2 * OUTBOX_NAME_SIZE + 64];
	char		text[sizeof(name) + OUTBOX_ERROR_LEN];

	name_destination(&breaker->destination, name, sizeof(name));
	snprintf(text, sizeof(text), "%s %s: %s", name,
			 exchange ? "cannot be used" : "takes no messages", why);
	outbox_report_error(slot, text);
	show_activity(slot);
	if (breaker->reported)
		return;
	breaker->reported = true;
	ereport(LOG,
			(errmsg("outbox: %s", text),
			 errdetail("Its messages wait in outbox.deferred; one of them is tried from time to time."),
			 exchange ?
			 errhint("Declare the exchange, or permit the user of outbox.uri to write to it.") :
			 errhint("Look at the queues it leads to: one is full, or has lost its majority.")));
}

void
outbox_report_available(OutboxBreaker *breaker)
{
	char		name[2 * OUTBOX_NAME_SIZE + 64];

	if (!breaker->reported)
		return;
	breaker->reported = false;
	name_destination(&breaker->destination, name, sizeof(name));
	ereport(LOG, (errmsg("outbox: %s %s again", name,
						 breaker->destination.scope == OUTBOX_SCOPE_EXCHANGE ?
						 "can be used" : "takes messages")));
}

void
outbox_report_counts(OutboxSlot *slot, int in_flight, const OutboxTally *tally)
{
	/* One writer: reading and writing apart is enough. */
#define ADD(counter) \
	pg_atomic_write_u64(&slot->counter, pg_atomic_read_u64(&slot->counter) + tally->counter)
	pg_atomic_write_u64(&slot->in_flight, in_flight);
	if (tally->confirmed + tally->returned + tally->nacked > 0)
		answered = true;
	if (tally->confirmed)
		ADD(confirmed);
	if (tally->returned)
		ADD(returned);
	if (tally->nacked)
		ADD(nacked);
#undef ADD
}
