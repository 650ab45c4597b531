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
 *			nacked, 404, 403		it does not: next probe after a backoff
 *			another channel.close	the message is to blame: it is set aside
 *			connection lost			nothing is known
 *			no answer				it does not; the message may have been taken
 *
 *		A message without an answer is left alone until outbox.confirm_timeout
 *		and the backoff have passed, since to send it again is to send it twice,
 *		and its late answer is as good as any; but if another destination waits
 *		for its turn, not for longer than SHARE_MS.
 *
 *		Must never wait, nor touch the batch's own messages.
 */
#include "pgcompat.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "probe.h"
#include "publish.h"
#include "report.h"
#include "settings.h"

#define CONNECTION_FORCED 320

/* Wait for an answer at least so long, unless outbox.confirm_timeout is shorter. */
#define SHARE_MS 5000

/* The first message of a queue is not recorded yet: look again. */
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

/* The message is not on the wire any more, and may be taken up by whoever wants it. */
static void
give_up_message(OutboxProbe *probe)
{
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

	outbox_breaker_failed(breaker, now);
	outbox_report_unavailable(breaker, why);
	give_up_message(probe);
}

static void
works_again(OutboxProbe *probe)
{
	outbox_report_available(probe->breaker);
	outbox_breaker_drain(probe->breakers, probe->breaker);
}

static const char *
take_answer(OutboxProbe *probe, const OutboxBrokerEvent *event, TimestampTz now, OutboxTally *tally)
{
	uint64		tag = probe->next_tag - 1;
	bool		returned = probe->entry.returned;

	if (probe->breaker == NULL || event->delivery_tag > tag ||
		(event->delivery_tag != tag && !event->multiple))
		return "it confirmed a message that is not on the way";
	if (event->type == OUTBOX_EVENT_NACK)
	{
		tally->nacked++;
		still_unavailable(probe, OUTBOX_NACKED_TEXT, now);
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
		give_up_message(probe); /* nothing of it has left */
	else if (closed && outbox_confirm_blames_exchange(event->code, event->text))
		still_unavailable(probe, event->text, now);
	else if (closed || (event->code != 0 && event->code != CONNECTION_FORCED &&
						probe->suspect_id == probe->entry.id))
	{
		/* The one that comes next may be better. */
		probe->breaker->next_probe = now;
		settle_message(probe, OUTBOX_REJECTED, event->text);
	}
	else
	{
		if (event->code != 0 && event->code != CONNECTION_FORCED)
			probe->suspect_id = probe->entry.id;
		give_up_message(probe);
	}
}

static void
take_events(OutboxProbe *probe, TimestampTz now, OutboxTally *tally)
{
	OutboxBrokerEvent event;

	while (outbox_broker_next_event(probe->broker, &event))
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
			case OUTBOX_EVENT_UNBLOCKED:
				break;
		}
		if (nonsense)
			outbox_broker_fail(probe->broker, nonsense);
	}
}

/* How long to wait for the answer to the message on the wire. */
static TimestampTz
answer_deadline(OutboxProbe *probe)
{
	OutboxBreaker *other = outbox_breakers_next(probe->breakers, probe->breaker);
	TimestampTz patience = TimestampTzPlusMilliseconds(probe->sent_at, outbox_confirm_timeout);
	TimestampTz share = TimestampTzPlusMilliseconds(probe->sent_at,
													Min(SHARE_MS, outbox_confirm_timeout));

	if (outbox_broker_blocked(probe->broker))
		return DT_NOEND;
	/* Its own next probe was set when it was sent. */
	patience = Max(patience, probe->breaker->next_probe);
	if (other)
		patience = Min(patience, Max(share, other->next_probe));
	return patience;
}

static void
disconnect(OutboxProbe *probe)
{
	if (probe->breaker)
		give_up_message(probe);
	if (outbox_broker_state(probe->broker) != OUTBOX_BROKER_IDLE)
		outbox_broker_close(probe->broker);
}

void
outbox_probe_turn(OutboxProbe *probe, TimestampTz now, bool allowed,
				  const OutboxBroker *publisher, OutboxTally *tally)
{
	/* A message that is on the wire is waited for, though its queue may drain. */
	if (!allowed || outbox_breakers_next(probe->breakers, NULL) == NULL)
	{
		disconnect(probe);
		return;
	}
	if (outbox_broker_state(probe->broker) == OUTBOX_BROKER_IDLE)
		outbox_broker_configure(probe->broker);
	outbox_broker_follow(probe->broker, publisher);
	outbox_broker_turn(probe->broker, now);
	take_events(probe, now, tally);
	if (probe->breaker && answer_deadline(probe) <= now)
	{
		still_unavailable(probe, "RabbitMQ does not confirm", now);
		outbox_broker_fail(probe->broker, "a message was not confirmed in time");
		take_events(probe, now, tally);
	}
}

bool
outbox_probe_is_due(OutboxProbe *probe, TimestampTz now)
{
	OutboxBreaker *next;

	if (probe->breaker || outbox_broker_state(probe->broker) != OUTBOX_BROKER_READY ||
		outbox_broker_blocked(probe->broker))
		return false;
	next = outbox_breakers_next(probe->breakers, NULL);
	return next && next->next_probe <= now;
}

static OutboxTaken
send_message(void *arg, const OutboxMessage *message, bool in_queue)
{
	OutboxProbe *probe = arg;
	OutboxBuffer *output = outbox_broker_output(probe->broker);
	HTAB	   *busy = probe->recorder->batch->from_deferred;
	bool		fits;

	/* Those behind it, if it has an ordering key, have to wait for the answer. */
	if (probe->entry.id != 0)
		return OUTBOX_TAKEN_NOT;
	probe->entry.id = message->id;
	probe->entry.segment = OUTBOX_DEFERRED;
	probe->entry.attempts = message->attempts;
	probe->entry.in_queue = in_queue;
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
	OutboxBreaker *breaker = outbox_breakers_next(probe->breakers, NULL);
	int64		place = 0;
	bool		full;

	if (probe->entry.error)
		pfree(probe->entry.error);
	memset(&probe->entry, 0, sizeof(probe->entry));
	probe->breaker = breaker;
	probe->sent_at = now;
	if (outbox_deferred_pick_waiting(&breaker->destination, &place, 1, batch->from_deferred,
									 send_message, probe, &full) > 0)
	{
		if (probe->breaker)
			breaker->next_probe = outbox_deferred_retry_at(now, breaker->failures + 1);
		return;
	}
	/* Nothing waits for it, or what does is yet to be recorded. */
	probe->breaker = NULL;
	if (breaker->last_set_aside <= batch->head && probe->recorder->leftover == NIL)
		outbox_breaker_remove(probe->breakers, breaker);
	else
		breaker->next_probe = TimestampTzPlusMilliseconds(now, LOOK_AGAIN_MS);
}

TimestampTz
outbox_probe_deadline(OutboxProbe *probe)
{
	TimestampTz deadline = outbox_broker_deadline(probe->broker);

	if (probe->breaker)
		return Min(deadline, answer_deadline(probe));
	if (outbox_broker_state(probe->broker) == OUTBOX_BROKER_READY &&
		!outbox_broker_blocked(probe->broker))
	{
		OutboxBreaker *next = outbox_breakers_next(probe->breakers, NULL);

		if (next)
			deadline = Min(deadline, next->next_probe);
	}
	return deadline;
}

void
outbox_probe_follow_clock(OutboxProbe *probe, TimestampTz back)
{
	probe->sent_at -= back;
	outbox_breakers_probe_now(probe->breakers);
}
