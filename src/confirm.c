/*
 * confirm.c
 *		Step 6 of a message's path: the broker's answers settle messages.
 *
 *		ack and nack come in any order, for one tag or for all up to one. A
 *		return precedes the ack of its message and carries no tag, only our
 *		header x-outbox-id. What was in flight when a channel or connection
 *		ended is unknown and sent again; nothing but the broker's answer
 *		settles a message.
 *
 *		After a channel was closed because of a message, the broker has dropped
 *		all that came behind it and answered for none, so the culprit cannot be
 *		told from the innocent. They are sent again one at a time
 *		(careful_until) until the channel closes on a message that is alone in
 *		flight on it. What is on its way on other channels is not concerned. If
 *		the broker's words blame an exchange, publish.c first looks for it among
 *		them (find_culprit), and then all goes on at full speed but for that
 *		exchange (breaker.c).
 *
 *		The broker is not trusted: a tag that is not in flight is reported, not
 *		looked up.
 */
#include "pgcompat.h"

#include "mb/pg_wchar.h"

#include "confirm.h"
#include "faultpoint.h"

/* Codes of AMQP. */
#define ACCESS_REFUSED	403
#define NOT_FOUND		404

void
outbox_fit_encoding(char *text)
{
	if (GetDatabaseEncoding() == PG_UTF8)
		return;
	for (; *text != '\0'; text++)
	{
		if (IS_HIGHBIT_SET(*text))
			*text = '?';
	}
}

bool
outbox_confirm_next_event(OutboxBroker *broker, OutboxBrokerEvent *event)
{
	if (!outbox_broker_next_event(broker, event))
		return false;
	outbox_fit_encoding(event->text);
	return true;
}

static void
settle_answered(OutboxBatch *batch, uint64 index, bool ack, OutboxTally *tally)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);

	OUTBOX_FAULTPOINT("answer-received");
	if (!ack)
	{
		tally->nacked++;
		outbox_batch_settle(batch, index, OUTBOX_NACKED, OUTBOX_NACKED_TEXT);
	}
	else if (entry->returned)
	{
		tally->returned++;
		outbox_batch_settle(batch, index, OUTBOX_RETURNED, NULL);
	}
	else
	{
		tally->confirmed++;
		outbox_batch_settle(batch, index, OUTBOX_CONFIRMED, NULL);
	}
	OUTBOX_FAULTPOINT("answer-applied");
}

static const char *
apply_answer(OutboxBatch *batch, const OutboxChannel *channel, const OutboxBrokerEvent *event,
			 OutboxTally *tally)
{
	bool		ack = event->type == OUTBOX_EVENT_ACK;
	uint64		last = event->delivery_tag;
	uint64		index;

	if (event->multiple && last == 0)
		last = channel->next_tag - 1;	/* "all so far" */
	index = outbox_batch_in_flight(batch, channel, last);
	/* What is encoded may not have been sent yet. */
	if (last >= channel->next_tag ||
		(index != OUTBOX_NO_ENTRY &&
		 outbox_batch_entry(batch, index)->sent_end + event->unsent > channel->sent_bytes))
		return "it confirmed a message that was never sent to it";
	if (!event->multiple)
	{
		if (index == OUTBOX_NO_ENTRY)
			return "it confirmed a message twice";
		settle_answered(batch, index, ack, tally);
		return NULL;
	}
	for (uint64 tag = channel->lowest_tag; tag <= last; tag++)
	{
		index = outbox_batch_in_flight(batch, channel, tag);
		if (index != OUTBOX_NO_ENTRY)
			settle_answered(batch, index, ack, tally);
	}
	return NULL;
}

char *
outbox_confirm_return_text(MemoryContext context, const OutboxBrokerEvent *event)
{
	char		words[sizeof(event->text) + 64];

	snprintf(words, sizeof(words), "returned by RabbitMQ, no queue takes it: %u %s",
			 event->code, event->text);
	return MemoryContextStrdup(context, words);
}

static const char *
apply_return(OutboxBatch *batch, const OutboxChannel *channel, const OutboxBrokerEvent *event)
{
	for (uint64 tag = channel->lowest_tag; tag < channel->next_tag; tag++)
	{
		uint64		index = outbox_batch_in_flight(batch, channel, tag);
		OutboxEntry *entry;

		if (index == OUTBOX_NO_ENTRY)
			continue;
		entry = outbox_batch_entry(batch, index);
		if (entry->id != event->id || entry->returned)
			continue;
		entry->returned = true;
		entry->error = outbox_confirm_return_text(batch->context, event);
		OUTBOX_FAULTPOINT("return-applied");
		return NULL;
	}
	return "it returned a message that was never sent to it";
}

/* Is what was refused the exchange, for whatever message, and not one routing key? */
bool
outbox_confirm_blames_exchange(uint16 code, const char *text)
{
	return code == NOT_FOUND || (code == ACCESS_REFUSED && strstr(text, "topic '") == NULL);
}

/* Behind the last entry in flight on the channel. */
static uint64
end_of_in_flight(OutboxBatch *batch, const OutboxChannel *channel)
{
	uint64		end = 0;

	for (uint64 tag = channel->lowest_tag; tag < channel->next_tag; tag++)
	{
		uint64		index = outbox_batch_in_flight(batch, channel, tag);

		if (index != OUTBOX_NO_ENTRY)
			end = Max(end, index + 1);
	}
	return end;
}

/* The broker ended the channel, or the connection, because of something we sent. */
static void
apply_refusal(OutboxBatch *batch, OutboxChannel *channel, const OutboxBrokerEvent *event)
{
	uint64		oldest = outbox_batch_oldest_in_flight(batch, channel);
	bool		exchange = event->type == OUTBOX_EVENT_CHANNEL_CLOSED &&
		outbox_confirm_blames_exchange(event->code, event->text);

	if (oldest == OUTBOX_NO_ENTRY)
		return;
	strlcpy(channel->refusal, event->text, sizeof(channel->refusal));
	/* One of which nothing has been sent is not to blame. */
	if (channel->in_flight > 1 || event->unsent >= outbox_batch_entry(batch, oldest)->size)
	{
		batch->careful_until = Max(batch->careful_until, end_of_in_flight(batch, channel));
		channel->find_culprit = exchange;
	}
	else if (exchange)
		outbox_batch_entry(batch, oldest)->suspect = OUTBOX_SCOPE_EXCHANGE;
	else
		outbox_batch_settle(batch, oldest, OUTBOX_REJECTED, event->text);
}

/*
 * A closed connection may have been the fault of a message as well: if it
 * happens twice in a row with the same one in front, look for it.
 */
static void
apply_loss(OutboxBatch *batch, OutboxChannel *channel, const OutboxBrokerEvent *event)
{
	uint64		oldest = outbox_batch_oldest_in_flight(batch, channel);
	int64		suspect = oldest == OUTBOX_NO_ENTRY ? 0 : outbox_batch_entry(batch, oldest)->id;

	if (event->code == 0 || event->code == OUTBOX_CONNECTION_FORCED || suspect == 0)
		return;
	if (suspect == batch->suspect_id)
		apply_refusal(batch, channel, event);
	batch->suspect_id = suspect;
}

const char *
outbox_confirm_apply(OutboxBatch *batch, OutboxChannel *channel, const OutboxBrokerEvent *event,
					 OutboxTally *tally)
{
	switch (event->type)
	{
		case OUTBOX_EVENT_ACK:
		case OUTBOX_EVENT_NACK:
			return apply_answer(batch, channel, event, tally);
		case OUTBOX_EVENT_RETURN:
			return apply_return(batch, channel, event);
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			apply_refusal(batch, channel, event);
			outbox_batch_unsend(batch, channel);
			return NULL;
		case OUTBOX_EVENT_LOST:
			apply_loss(batch, channel, event);
			outbox_batch_unsend(batch, channel);
			return NULL;
		case OUTBOX_EVENT_READY:
		case OUTBOX_EVENT_BLOCKED:
		case OUTBOX_EVENT_UNBLOCKED:
			return NULL;
	}
	return NULL;
}
