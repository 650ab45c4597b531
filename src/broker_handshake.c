/*
 * broker_handshake.c
 *		From the protocol header to the first moment a message may be
 *		published: login, tune, open, channel, confirm mode. Also run in part
 *		for a channel that is opened again.
 *
 *		Each function answers one frame of the broker by appending to
 *		`control`; who sends it is broker_output.c. Never here: a password in a
 *		text, or left behind in memory.
 */
#include "pgcompat.h"

#include "utils/memutils.h"

#include "broker_private.h"
#include "settings.h"

void
outbox_broker_handshake_begin(OutboxBroker *broker)
{
	broker->state = OUTBOX_BROKER_HANDSHAKE;
	broker->expected = OUTBOX_FRAME_START;
	broker->frame_max = OUTBOX_AMQP_FRAME_MAX;
	broker->heartbeat = 0;
	outbox_amqp_put_protocol_header(&broker->control);
	outbox_broker_start_phase(broker);
}

/*
 * Log in with the password of the URI or of the password file. Without one the
 * connection ends here, whatever answers to a login have arrived already.
 */
static void
login_plain(OutboxBroker *broker, const OutboxUri *uri)
{
	MemoryContext scratch;
	MemoryContext old;
	char	   *found = NULL;
	const char *error;

	if (uri->password != NULL)
	{
		broker->secret = true;
		outbox_amqp_put_start_ok(&broker->control, false, uri->user, uri->password,
								 broker->connection_name);
		return;
	}

	scratch = AllocSetContextCreate(broker->context, "outbox passfile",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(scratch);
	if (outbox_uri_passfile_lookup(outbox_passfile, uri, &found, &error))
	{
		broker->secret = true;
		outbox_amqp_put_start_ok(&broker->control, false, uri->user, found,
								 broker->connection_name);
		explicit_bzero(found, strlen(found));
	}
	else
	{
		outbox_buffer_reset(&broker->input);
		outbox_broker_end(broker, OUTBOX_LOSS_REFUSED, 0,
						  "could not log in to RabbitMQ at \"%s\": %s",
						  broker->endpoint, error);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

static void
answer_start(OutboxBroker *broker, const OutboxFrame *frame)
{
	const OutboxUri *uri = &broker->uris[broker->uri_index];

	if (frame->external && broker->transport.external && uri->password == NULL)
		outbox_amqp_put_start_ok(&broker->control, true, uri->user, "",
								 broker->connection_name);
	else if (frame->plain)
		login_plain(broker, uri);
	else
	{
		outbox_buffer_reset(&broker->input);
		outbox_broker_end(broker, OUTBOX_LOSS_REFUSED, 0,
						  "RabbitMQ at \"%s\" does not offer to log in with a password (PLAIN)",
						  broker->endpoint);
	}
	broker->expected = OUTBOX_FRAME_TUNE;
}

/*
 * Agree on limits. The broker's heartbeat of 0 leaves the choice to us, ours
 * of 0 turns heartbeats off on both sides.
 */
static void
answer_tune(OutboxBroker *broker, const OutboxFrame *frame)
{
	uint32		frame_max = OUTBOX_AMQP_FRAME_MAX;
	int			heartbeat = Min(Max(outbox_heartbeat, 0), PG_UINT16_MAX);

	if (frame->frame_max != 0)
		frame_max = Min(frame_max, frame->frame_max);
	if (frame_max < OUTBOX_AMQP_FRAME_MIN)
	{
		outbox_broker_violation(broker, "it allows frames of less than 4096 bytes only");
		return;
	}
	if (heartbeat > 0 && frame->heartbeat > 0)
		heartbeat = Min(heartbeat, frame->heartbeat);

	broker->frame_max = frame_max;
	broker->heartbeat = heartbeat;
	broker->last_received = broker->now;
	outbox_amqp_put_tune_ok(&broker->control, frame->channel_max, frame_max,
							(uint16) heartbeat);
	outbox_amqp_put_open(&broker->control, broker->uris[broker->uri_index].vhost);
	broker->expected = OUTBOX_FRAME_OPEN_OK;
}

/*
 * Heartbeats tell a dead broker from one that is alive but does not read,
 * which TCP_USER_TIMEOUT does not: where there are heartbeats, it is turned
 * off.
 */
static void
answer_open_ok(OutboxBroker *broker)
{
	if (broker->heartbeat > 0)
		outbox_transport_expect_progress(&broker->transport, false);
	broker->state = OUTBOX_BROKER_CHANNEL;
	outbox_amqp_put_channel_open(&broker->control);
	broker->expected = OUTBOX_FRAME_CHANNEL_OPEN_OK;
	outbox_broker_start_phase(broker);
}

static void
become_ready(OutboxBroker *broker, OutboxBrokerEvent *event)
{
	Assert(broker->frame_left == 0);
	outbox_buffer_reset(&broker->data);
	broker->state = OUTBOX_BROKER_READY;
	broker->expected = OUTBOX_FRAME_HEARTBEAT;
	broker->flow_stopped = false;
	if (broker->connected_since == 0)
		broker->connected_since = broker->now;
	outbox_broker_event(event, OUTBOX_EVENT_READY, 0, broker->name);
}

/* Returns true if `event` was filled. */
bool
outbox_broker_handshake_frame(OutboxBroker *broker, const OutboxFrame *frame,
							  OutboxBrokerEvent *event)
{
	/* With half a message unsent, the request for the channel is unsent as well. */
	if (frame->type != broker->expected || !outbox_broker_between_messages(broker))
	{
		outbox_broker_violation(broker, "a frame of the handshake came out of turn");
		return false;
	}
	switch (frame->type)
	{
		case OUTBOX_FRAME_START:
			answer_start(broker, frame);
			return false;
		case OUTBOX_FRAME_TUNE:
			answer_tune(broker, frame);
			return false;
		case OUTBOX_FRAME_OPEN_OK:
			answer_open_ok(broker);
			return false;
		case OUTBOX_FRAME_CHANNEL_OPEN_OK:
			outbox_amqp_put_confirm_select(&broker->control);
			broker->expected = OUTBOX_FRAME_CONFIRM_SELECT_OK;
			return false;
		default:
			become_ready(broker, event);
			return true;
	}
}
