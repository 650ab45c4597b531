/*
 * probe.c
 *		Tries destinations that do not work (breaker.c): sends the first message
 *		that waits for one, on a connection of its own, and waits for the
 *		answer.
 *
 *		Why another connection: a queue that does not answer makes RabbitMQ stop
 *		reading whatever connection publishes to it, and an exchange that is
 *		missing closes the channel; neither is to happen to the others.
 *
 *		One message is on the wire at a time. It is a row of deferred, recorded
 *		and past the durability gate, and stays one until the answer is
 *		recorded (outbox_record_add()); it is in from_deferred so long, so that
 *		nobody else sends it.
 *
 *			confirmed, returned		the destination works: its queue drains
 *			404, 403				it does not: next probe after a backoff
 *			nacked					likewise, but an exchange is proved by it
 *			another channel.close	the message is to blame: it is set aside
 *			connection lost			nothing is known
 *			no answer				as if nacked; the message may have been taken
 *
 *		A message without an answer is left alone until outbox.confirm_timeout
 *		and the backoff have passed, since to send it again is to send it twice,
 *		and its late answer is as good as any; but if other destinations wait
 *		for their turns, not for longer than a share of SHARE_MS.
 *
 *		Must never wait, nor touch the batch's own messages.
 */
#include "pgcompat.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "deferred.h"
#include "probe.h"
#include "publish.h"
#include "report.h"
#include "settings.h"

/* While other destinations are due, wait for an answer so long; of all of them together. */
#define SHARE_MS 5000
#define SHARE_MIN_MS 200

/* Some of a queue's first messages may be on their way to be recorded: look again. */
#define LOOK_AT_ROWS 20
#define LOOK_AGAIN_MS 100

OutboxProbe *
outbox_probe_create(MemoryContext context, const char *connection_name,
					OutboxBreakers *breakers, OutboxRecorder *recorder)
{
	OutboxProbe *probe = MemoryContextAllocZero(context, sizeof(OutboxProbe));

	probe->broker = outbox_broker_create(context, connection_name);
	probe->breakers = breakers;
	probe->recorder = recorder;
	probe->scratch = AllocSetContextCreate(context, "outbox probe", ALLOCSET_DEFAULT_SIZES);
	return probe;
}

/* Nothing is known of the message on the wire: try again at `next_probe`. */
static void
give_up_message(OutboxProbe *probe, TimestampTz next_probe)
{
	outbox_breaker_set_next_probe(probe->breakers, probe->breaker, next_probe);
	probe->breaker = NULL;
	(void) hash_search(probe->recorder->batch->from_deferred, &probe->entry.id, HASH_REMOVE, NULL);
}

/* Its fate is known, and will be recorded. */
static void
settle_message(OutboxProbe *probe, OutboxOutcome outcome, const char *error)
{
	OutboxEntry entry = probe->entry;

	entry.outcome = outcome;
	entry.error = unconstify(char *, error);
	outbox_record_add(probe->recorder, &entry);
	probe->breaker = NULL;
}

static void
still_unavailable(OutboxProbe *probe, const char *why, TimestampTz now)
{
	OutboxBreaker *breaker = probe->breaker;

	give_up_message(probe, now);
	outbox_breaker_failed(probe->breakers, breaker, now);
	outbox_report_unavailable(breaker, why);
}

static void
works_again(OutboxProbe *probe)
{
	outbox_report_available(probe->breaker);
	outbox_breaker_drain(probe->breakers, probe->breaker);
}

/*
 * The message was nacked, or had no answer. If it was the exchange that was in
 * doubt, it can be used: it is one of the queues that takes nothing.
 */
static void
not_taken(OutboxProbe *probe, const char *why, TimestampTz now)
{
	OutboxBreaker *breaker;

	if (probe->breaker->destination.scope == OUTBOX_SCOPE_ROUTE ||
		(breaker = outbox_breaker_open(probe->breakers, &probe->route, true, now)) == NULL)
	{
		still_unavailable(probe, why, now);
		return;
	}
	outbox_report_unavailable(breaker, why);
	works_again(probe);
	probe->entry.unavailable = OUTBOX_SCOPE_ROUTE;
	settle_message(probe, OUTBOX_UNAVAILABLE, why);
}

static const char *
take_answer(OutboxProbe *probe, const OutboxBrokerEvent *event, TimestampTz now, OutboxTally *tally)
{
	bool		all = event->multiple && event->delivery_tag == 0;
	bool		returned = probe->entry.returned;

	if (probe->breaker == NULL || (event->delivery_tag != probe->next_tag - 1 && !all) ||
		event->unsent > 0)
		return "it confirmed a message that is not on the way";
	if (event->type == OUTBOX_EVENT_NACK)
	{
		tally->nacked++;
		not_taken(probe, OUTBOX_NACKED_TEXT, now);
		return NULL;
	}
	works_again(probe);
	if (returned)
		tally->returned++;
	else
		tally->confirmed++;
	settle_message(probe, returned ? OUTBOX_RETURNED : OUTBOX_CONFIRMED,
				   returned ? probe->entry.error : NULL);
	return NULL;
}

static const char *
take_return(OutboxProbe *probe, const OutboxBrokerEvent *event)
{
	if (probe->breaker == NULL || event->id != probe->entry.id)
		return "it returned a message that is not on the way";
	probe->entry.returned = true;
	if (probe->entry.error)
		pfree(probe->entry.error);
	probe->entry.error = outbox_confirm_return_text(probe->recorder->batch->context, event);
	return NULL;
}

/* The channel or the connection has ended while a message was on the way. */
static void
take_end(OutboxProbe *probe, const OutboxBrokerEvent *event, TimestampTz now)
{
	bool		closed = event->type == OUTBOX_EVENT_CHANNEL_CLOSED;

	if (event->unsent >= probe->entry.size)
		give_up_message(probe, now);	/* nothing of it has left */
	else if (closed && outbox_confirm_blames_exchange(event->code, event->text))
		still_unavailable(probe, event->text, now);
	else if (closed || (event->code != 0 && event->code != OUTBOX_CONNECTION_FORCED &&
						probe->suspect_id == probe->entry.id))
	{
		/* The one that comes next may be better. */
		outbox_breaker_set_next_probe(probe->breakers, probe->breaker, now);
		settle_message(probe, OUTBOX_REJECTED, event->text);
	}
	else
	{
		if (event->code != 0 && event->code != OUTBOX_CONNECTION_FORCED)
			probe->suspect_id = probe->entry.id;
		give_up_message(probe, probe->retry_at);
	}
}

static void
take_events(OutboxProbe *probe, TimestampTz now, OutboxTally *tally)
{
	OutboxBrokerEvent event;

	while (outbox_confirm_next_event(probe->broker, &event))
	{
		const char *nonsense = NULL;

		outbox_report_probe_event(&event);
		switch (event.type)
		{
			case OUTBOX_EVENT_READY:
				probe->next_tag = 1;
				break;
			case OUTBOX_EVENT_ACK:
			case OUTBOX_EVENT_NACK:
				nonsense = take_answer(probe, &event, now, tally);
				break;
			case OUTBOX_EVENT_RETURN:
				nonsense = take_return(probe, &event);
				break;
			case OUTBOX_EVENT_CHANNEL_CLOSED:
			case OUTBOX_EVENT_LOST:
				if (probe->breaker)
					take_end(probe, &event, now);
				break;
			case OUTBOX_EVENT_BLOCKED:
				break;
			case OUTBOX_EVENT_UNBLOCKED:
				probe->sent_at = now;
				break;
		}
		if (nonsense)
			outbox_broker_fail(probe->broker, nonsense);
	}
}

/* Until when to wait for the answer to the message on the wire. */
static TimestampTz
answer_deadline(OutboxProbe *probe)
{
	int			others = probe->breakers->open - 1;
	TimestampTz patience = TimestampTzPlusMilliseconds(probe->sent_at, outbox_confirm_timeout);

	if (outbox_broker_blocked(probe->broker))
		return DT_NOEND;
	patience = Max(patience, probe->retry_at);
	if (others > 0)
	{
		TimestampTz share = TimestampTzPlusMilliseconds(probe->sent_at,
														Max(SHARE_MS / others, SHARE_MIN_MS));

		patience = Min(patience, Max(share, outbox_breakers_next(probe->breakers)->next_probe));
	}
	return patience;
}

/* A large message on a slow line takes its time: bytes that move count. */
static void
watch_output(OutboxProbe *probe, TimestampTz now)
{
	OutboxBuffer *output = outbox_broker_output(probe->broker);
	size_t		unsent = output->end - output->start;

	if (unsent != probe->unsent)
		probe->sent_at = now;
	probe->unsent = unsent;
}

static void
disconnect(OutboxProbe *probe, TimestampTz now)
{
	if (probe->breaker)
		give_up_message(probe, now);
	if (outbox_broker_state(probe->broker) != OUTBOX_BROKER_IDLE)
		outbox_broker_close(probe->broker);
}

void
outbox_probe_turn(OutboxProbe *probe, TimestampTz now, bool allowed,
				  const OutboxBroker *publisher, OutboxTally *tally)
{
	if (!allowed || probe->breakers->open == 0)
	{
		disconnect(probe, now);
		return;
	}
	if (outbox_broker_state(probe->broker) == OUTBOX_BROKER_IDLE)
		outbox_broker_configure(probe->broker);
	outbox_broker_follow(probe->broker, publisher);
	outbox_broker_turn(probe->broker, now);
	take_events(probe, now, tally);
	watch_output(probe, now);
	if (probe->breaker && answer_deadline(probe) <= now)
	{
		not_taken(probe, "RabbitMQ does not confirm", now);
		/* The next message needs a connection that nobody has stopped. */
		disconnect(probe, now);
	}
}

TimestampTz
outbox_probe_next(OutboxProbe *probe)
{
	OutboxBreaker *next;

	if (probe->breaker || outbox_broker_state(probe->broker) != OUTBOX_BROKER_READY ||
		outbox_broker_blocked(probe->broker))
		return DT_NOEND;
	next = outbox_breakers_next(probe->breakers);
	return next ? next->next_probe : DT_NOEND;
}

static OutboxTaken
send_message(void *arg, const OutboxMessage *message, bool in_queue)
{
	OutboxProbe *probe = arg;
	OutboxBuffer *output = outbox_broker_output(probe->broker);
	HTAB	   *busy = probe->recorder->batch->from_deferred;
	bool		fits;

	/* The others have to wait for its answer. */
	if (probe->entry.id != 0)
		return OUTBOX_TAKEN_NOT;
	probe->entry.id = message->id;
	probe->entry.segment = OUTBOX_DEFERRED;
	probe->entry.attempts = message->attempts;
	probe->entry.in_queue = in_queue;
	probe->route = outbox_destination_of(message, OUTBOX_SCOPE_ROUTE);
	(void) hash_search(busy, &message->id, HASH_ENTER, NULL);
	fits = outbox_publish_encode(probe->broker, probe->scratch, message, &probe->entry.size);
	output->sendable = output->end;
	if (!fits)
	{
		settle_message(probe, OUTBOX_UNSENDABLE, OUTBOX_UNSENDABLE_TEXT);
		return OUTBOX_TAKEN_ASIDE;
	}
	probe->next_tag++;
	return OUTBOX_TAKEN;
}

void
outbox_probe_send(OutboxProbe *probe, TimestampTz now)
{
	OutboxBatch *batch = probe->recorder->batch;
	OutboxBreaker *breaker = outbox_breakers_next(probe->breakers);
	OutboxPicked picked;
	int64		place = 0;

	if (probe->entry.error)
		pfree(probe->entry.error);
	memset(&probe->entry, 0, sizeof(probe->entry));
	probe->breaker = breaker;
	probe->sent_at = now;
	probe->retry_at = outbox_deferred_retry_at(now, breaker->failures + 1);
	picked = outbox_pick_waiting(&breaker->destination, &place, LOOK_AT_ROWS,
								 batch->from_deferred, send_message, probe);
	if (picked.count > 0)
	{
		if (probe->breaker)
			outbox_breaker_set_next_probe(probe->breakers, breaker, DT_NOEND);
		return;
	}
	/* Nothing waits for it, or what does is yet to be recorded. */
	probe->breaker = NULL;
	if (picked.end && breaker->last_set_aside <= batch->head && probe->recorder->leftover == NIL)
		outbox_breaker_remove(probe->breakers, breaker);
	else
		outbox_breaker_set_next_probe(probe->breakers, breaker,
									  TimestampTzPlusMilliseconds(now, LOOK_AGAIN_MS));
}

TimestampTz
outbox_probe_deadline(OutboxProbe *probe)
{
	TimestampTz deadline = outbox_broker_deadline(probe->broker);

	return probe->breaker ? Min(deadline, answer_deadline(probe)) : deadline;
}

void
outbox_probe_follow_clock(OutboxProbe *probe, TimestampTz back)
{
	probe->sent_at -= back;
	probe->retry_at -= back;
	outbox_breakers_forget_times(probe->breakers);
}
