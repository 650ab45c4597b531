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

#include "pgstat.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "report.h"

static OutboxWorkerState shown_state = OUTBOX_WORKER_STOPPED;
static char logged[OUTBOX_ERROR_LEN];	/* last loss that went to the log */
static bool was_ready = false;
static TimestampTz blocked_logged_at = 0;
static bool log_unblocked = false;

#define BLOCKED_LOG_INTERVAL_MS 10000

void
outbox_report_error(OutboxSlot *slot, const char *text)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(slot->last_error, text, OUTBOX_ERROR_LEN);
	slot->last_error_at = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
}

static void
show_activity(OutboxSlot *slot)
{
	char		activity[OUTBOX_ERROR_LEN + 64];

	if (shown_state == OUTBOX_WORKER_CONNECTING && slot->last_error_at != 0)
		snprintf(activity, sizeof(activity), "%s: %s",
				 outbox_state_name(shown_state), slot->last_error);
	else
		strlcpy(activity, outbox_state_name(shown_state), sizeof(activity));
	pgstat_report_activity(shown_state == OUTBOX_WORKER_IDLE ? STATE_IDLE : STATE_RUNNING,
						   activity);
}

static void
show_broker(OutboxSlot *slot, const OutboxBroker *broker)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(slot->broker, outbox_broker_name(broker), OUTBOX_BROKER_LEN);
	slot->connected_since = outbox_broker_connected_since(broker);
	LWLockRelease(outbox_shared->lock);
}

void
outbox_report_state(OutboxSlot *slot, OutboxWorkerState state, const OutboxBroker *broker)
{
	if (state == shown_state)
		return;
	shown_state = state;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->state = state;
	LWLockRelease(outbox_shared->lock);
	show_broker(slot, broker);
	show_activity(slot);
}

void
outbox_report_event(OutboxSlot *slot, const OutboxBrokerEvent *event, const OutboxBroker *broker)
{
	switch (event->type)
	{
		case OUTBOX_EVENT_READY:
			if (!was_ready)
			{
				ereport(LOG, (errmsg("outbox: connected to RabbitMQ at \"%s\"",
									 outbox_broker_name(broker))));
				if (outbox_broker_connected_since(broker) != slot->connected_since &&
					slot->last_error_at != 0)
					pg_atomic_fetch_add_u64(&slot->reconnects, 1);
			}
			/* A channel that was reopened is no news. */
			if (!was_ready)
				logged[0] = '\0';
			was_ready = true;
			show_broker(slot, broker);
			break;
		case OUTBOX_EVENT_LOST:
			was_ready = false;
			outbox_report_error(slot, event->text);
			if (strncmp(logged, event->text, OUTBOX_ERROR_LEN - 1) != 0)
				ereport(LOG, (errmsg("outbox: %s", event->text),
							  errdetail("Messages are kept and will be published once RabbitMQ can be reached.")));
			strlcpy(logged, event->text, OUTBOX_ERROR_LEN);
			show_broker(slot, broker);
			show_activity(slot);
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			outbox_report_error(slot, event->text);
			if (strncmp(logged, event->text, OUTBOX_ERROR_LEN - 1) != 0)
				ereport(LOG, (errmsg("outbox: RabbitMQ closed the channel: %s", event->text)));
			strlcpy(logged, event->text, OUTBOX_ERROR_LEN);
			break;
		case OUTBOX_EVENT_BLOCKED:
			outbox_report_error(slot, event->text);
			/* An alarm that comes and goes shall not fill the log. */
			log_unblocked = TimestampDifferenceExceeds(blocked_logged_at, GetCurrentTimestamp(),
													   BLOCKED_LOG_INTERVAL_MS);
			if (!log_unblocked)
				break;
			blocked_logged_at = GetCurrentTimestamp();
			ereport(LOG, (errmsg("outbox: RabbitMQ at \"%s\" has blocked publishing: %s",
								 outbox_broker_name(broker), event->text),
						  errdetail("Messages are kept until it has enough memory and disk again.")));
			break;
		case OUTBOX_EVENT_UNBLOCKED:
			if (log_unblocked)
				ereport(LOG, (errmsg("outbox: RabbitMQ at \"%s\" allows publishing again",
									 outbox_broker_name(broker))));
			break;
		case OUTBOX_EVENT_RETURN:
			outbox_report_error(slot, event->text);
			break;
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

void
outbox_report_unavailable(OutboxBreaker *breaker, const char *why)
{
	const OutboxDestination *destination = &breaker->destination;

	if (breaker->reported)
		return;
	breaker->reported = true;
	outbox_report_error(outbox_shmem_find(MyDatabaseId), why);
	if (destination->scope == OUTBOX_SCOPE_EXCHANGE)
		ereport(LOG,
				(errmsg("outbox: exchange \"%s\" cannot be used: %s", destination->exchange, why),
				 errdetail("Its messages wait in outbox.deferred; one of them is tried from time to time."),
				 errhint("Declare the exchange, or permit the user of outbox.uri to write to it.")));
	else
		ereport(LOG,
				(errmsg("outbox: exchange \"%s\" with routing key \"%s\" takes no messages: %s",
						destination->exchange, destination->routing_key, why),
				 errdetail("Its messages wait in outbox.deferred; one of them is tried from time to time."),
				 errhint("Look at the queues it leads to: one is full, or has lost its majority.")));
}

void
outbox_report_available(OutboxBreaker *breaker)
{
	const OutboxDestination *destination = &breaker->destination;

	if (!breaker->reported)
		return;
	breaker->reported = false;
	if (destination->scope == OUTBOX_SCOPE_EXCHANGE)
		ereport(LOG, (errmsg("outbox: exchange \"%s\" can be used again", destination->exchange)));
	else
		ereport(LOG, (errmsg("outbox: exchange \"%s\" with routing key \"%s\" takes messages again",
							 destination->exchange, destination->routing_key)));
}

void
outbox_report_counts(OutboxSlot *slot, int in_flight, const OutboxTally *tally)
{
	/* One writer: reading and writing apart is enough. */
#define ADD(counter) \
	pg_atomic_write_u64(&slot->counter, pg_atomic_read_u64(&slot->counter) + tally->counter)
	pg_atomic_write_u64(&slot->in_flight, in_flight);
	if (tally->confirmed)
		ADD(confirmed);
	if (tally->returned)
		ADD(returned);
	if (tally->nacked)
		ADD(nacked);
#undef ADD
}
