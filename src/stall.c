/*
 * stall.c
 *		Watches over step 6 of a message's path: the age of the message that has
 *		been in flight for longest.
 *
 *		A queue that confirms nothing, for instance without its majority, in the
 *		end makes RabbitMQ stop reading the connection, and with it the confirms
 *		of all others. So after outbox.confirm_timeout the connection is given
 *		up, and the messages that may be the reason are marked; when they are to
 *		be sent again, publish.c sets aside what goes where they go (breaker.c).
 *
 *		What does not count as silence: a broker that blocks, the durability
 *		gate, a slow line whose bytes move, and answers that come in order,
 *		however late each of them is.
 *
 *		Never here: waiting, ereport.
 */
#include "pgcompat.h"

#include "utils/timestamp.h"

#include "settings.h"
#include "stall.h"

/* The message that has been in flight for longest, NULL if no answer is owed. */
static OutboxEntry *
oldest_unanswered(OutboxBatch *batch, const OutboxChannel *channel, OutboxBroker *broker)
{
	OutboxBuffer *output = outbox_broker_output(broker);
	uint64		index = outbox_batch_oldest_in_flight(batch, channel);
	OutboxEntry *oldest;

	if (index == OUTBOX_NO_ENTRY || outbox_broker_blocked(broker) ||
		outbox_broker_state(broker) != OUTBOX_BROKER_READY)
		return NULL;
	oldest = outbox_batch_entry(batch, index);
	/* It may be waiting for the durability gate. */
	return oldest->sent_end > channel->sent_bytes - (output->end - output->sendable) ? NULL : oldest;
}

TimestampTz
outbox_stall_deadline(const OutboxStall *stall, OutboxBatch *batch, const OutboxChannel *channel,
					  OutboxBroker *broker)
{
	OutboxEntry *oldest = oldest_unanswered(batch, channel, broker);

	return oldest == NULL ? DT_NOEND :
		TimestampTzPlusMilliseconds(Max(oldest->sent_at, stall->since), outbox_confirm_timeout);
}

bool
outbox_stall_watch(OutboxStall *stall, OutboxBatch *batch, OutboxChannel *channel,
				   OutboxBroker *broker, TimestampTz now)
{
	OutboxBuffer *output = outbox_broker_output(broker);
	size_t		unsent = output->end - output->start;
	OutboxEntry *oldest = oldest_unanswered(batch, channel, broker);
	int			seconds;
	char		why[128];

	/*
	 * A large message on a slow line takes its time: bytes that move count. So do
	 * answers, as long as they come in order. A broker that has blocked us until now
	 * has its time from now on, not from when we last looked.
	 */
	if (oldest == NULL || !stall->owed ||
		(oldest->sent_end > channel->sent_bytes - unsent && unsent != stall->unsent) ||
		(channel->lowest_tag != stall->oldest_tag &&
		 channel->highest_answered < channel->lowest_tag))
		stall->since = now;
	stall->owed = oldest != NULL;
	stall->unsent = unsent;
	stall->oldest_tag = channel->lowest_tag;
	if (outbox_stall_deadline(stall, batch, channel, broker) > now)
		return false;
	seconds = (now - oldest->sent_at) / USECS_PER_SEC;
	/* Several queues may be to blame: find those that are nearly due as well. */
	outbox_batch_suspect(batch, channel,
						 TimestampTzPlusMilliseconds(now, -outbox_confirm_timeout / 2),
						 OUTBOX_SCOPE_ROUTE);
	snprintf(channel->refusal, sizeof(channel->refusal),
			 "not confirmed by RabbitMQ within %d s", seconds);
	snprintf(why, sizeof(why), "the oldest of %d messages in flight has not been confirmed for %d s",
			 channel->in_flight, seconds);
	outbox_broker_fail(broker, why);
	return true;
}
