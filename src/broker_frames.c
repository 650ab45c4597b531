/*
 * broker_frames.c
 *		What the broker sends, frame by frame, as events: the way back of a
 *		message, from the socket to confirm.c.
 *
 *		Frames are decoded where they were read, one at a time and only when
 *		asked for, so that any number of acks needs neither queue nor memory.
 *		On entry `input` holds bytes in the order of arrival, perhaps with part
 *		of a frame at the end. The broker is not trusted: a frame that does not
 *		fit the state of the connection ends it, and nothing else.
 */
#include "pgcompat.h"

#include "broker_private.h"

/* Fill all of an event; the text is cut between characters if it is too long. */
void
outbox_broker_event(OutboxBrokerEvent *event, OutboxBrokerEventType type,
					uint16 code, const char *text)
{
	event->type = type;
	event->delivery_tag = 0;
	event->multiple = false;
	event->id = 0;
	event->intended = false;
	event->unsent = 0;
	event->code = code;
	if (text[0] == '\0')
		event->text[0] = '\0';
	else
		outbox_amqp_printable(event->text, sizeof(event->text), text, strlen(text));
}

/*
 * connection.blocked and channel.flow are one thing to the caller.  A blocked
 * broker may leave our bytes unread for hours.
 */
static bool
set_blocked(OutboxBroker *broker, bool blocked, bool flow_stopped,
			const char *text, OutboxBrokerEvent *event)
{
	bool		before = outbox_broker_blocked(broker);

	broker->blocked = blocked;
	broker->flow_stopped = flow_stopped;
	if (outbox_broker_blocked(broker) == before)
		return false;
	if (broker->heartbeat == 0)
		outbox_transport_expect_progress(&broker->transport, before);
	if (before)
		outbox_broker_start_phase(broker);	/* it stood still while blocked */
	outbox_broker_event(event,
						before ? OUTBOX_EVENT_UNBLOCKED : OUTBOX_EVENT_BLOCKED,
						0, text);
	return true;
}

/* The broker gives a reason and expects close-ok; it gets one if that is easy. */
static void
connection_close(OutboxBroker *broker, const OutboxFrame *frame)
{
	bool		refused = frame->code == 402 || frame->code == 403 ||
		frame->code == 530;

	outbox_amqp_put_connection_close_ok(&broker->control);
	outbox_broker_farewell(broker);
	outbox_buffer_reset(&broker->input);

	/* This explains what may already look like a mere disconnect. */
	broker->ending = false;
	if (broker->state == OUTBOX_BROKER_HANDSHAKE && broker->uri_index >= 0)
		outbox_broker_end(broker, refused ? OUTBOX_LOSS_REFUSED : OUTBOX_LOSS_NETWORK,
						  frame->code,
						  "RabbitMQ at \"%s\" refused the login of user \"%s\": %s (%u)",
						  broker->name, broker->uris[broker->uri_index].user,
						  frame->text, frame->code);
	else
		outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, frame->code,
						  "RabbitMQ at \"%s\" closed the connection: %s (%u)",
						  broker->endpoint, frame->text, frame->code);
}

/*
 * The broker rejected a message and with it the channel. What must be kept
 * apart, in this order: the rest of a message it is still assembling, our
 * close-ok, the new channel, and only then new messages; see broker_output.c.
 */
static bool
channel_close(OutboxBroker *broker, const OutboxFrame *frame,
			  OutboxBrokerEvent *event)
{
	size_t		unsent;

	if (broker->state != OUTBOX_BROKER_READY)
	{
		outbox_buffer_reset(&broker->input);
		outbox_broker_end(broker, OUTBOX_LOSS_REFUSED, frame->code,
						  "RabbitMQ at \"%s\" refused to open a channel: %s (%u)",
						  broker->endpoint, frame->text, frame->code);
		return false;
	}
	unsent = broker->data.end - broker->data.start;
	outbox_broker_drop_unsent(broker);
	outbox_amqp_put_channel_close_ok(&broker->control);
	outbox_amqp_put_channel_open(&broker->control);
	broker->state = OUTBOX_BROKER_CHANNEL;
	broker->expected = OUTBOX_FRAME_CHANNEL_OPEN_OK;
	broker->flow_stopped = false;
	outbox_broker_start_phase(broker);
	outbox_broker_event(event, OUTBOX_EVENT_CHANNEL_CLOSED, frame->code, frame->text);
	event->unsent = unsent;
	return true;
}

/* basic.return is reported once its content has gone by. */
static bool
return_content(OutboxBroker *broker, const OutboxFrame *frame,
			   OutboxBrokerEvent *event)
{
	if (broker->return_step == OUTBOX_RETURN_HEADER &&
		frame->type == OUTBOX_FRAME_CONTENT_HEADER)
	{
		broker->returned.id = frame->has_id ? frame->id : 0;
		broker->return_left = frame->body_size;
		broker->return_step = OUTBOX_RETURN_BODY;
	}
	else if (broker->return_step == OUTBOX_RETURN_BODY &&
			 frame->type == OUTBOX_FRAME_CONTENT_BODY &&
			 frame->body_size > 0 && frame->body_size <= broker->return_left)
		broker->return_left -= frame->body_size;
	else
	{
		outbox_broker_violation(broker, "content that belongs to no returned message");
		return false;
	}
	if (broker->return_step != OUTBOX_RETURN_BODY || broker->return_left > 0)
		return false;
	broker->return_step = OUTBOX_RETURN_NONE;
	*event = broker->returned;
	return true;
}

/* Frames of the publishing channel, once it is open. */
static bool
channel_frame(OutboxBroker *broker, const OutboxFrame *frame,
			  OutboxBrokerEvent *event)
{
	if (frame->type == OUTBOX_FRAME_CONTENT_HEADER ||
		frame->type == OUTBOX_FRAME_CONTENT_BODY)
		return return_content(broker, frame, event);
	if (broker->return_step != OUTBOX_RETURN_NONE)
	{
		outbox_broker_violation(broker, "a returned message without its content");
		return false;
	}
	if (frame->type == OUTBOX_FRAME_CHANNEL_CLOSE &&
		broker->state >= OUTBOX_BROKER_CHANNEL)
		return channel_close(broker, frame, event);
	if (broker->state != OUTBOX_BROKER_READY)
	{
		outbox_broker_violation(broker, "a frame on a channel that is not open");
		return false;
	}
	switch (frame->type)
	{
		case OUTBOX_FRAME_ACK:
		case OUTBOX_FRAME_NACK:
			outbox_broker_event(event, frame->type == OUTBOX_FRAME_ACK ?
								OUTBOX_EVENT_ACK : OUTBOX_EVENT_NACK, 0, "");
			event->delivery_tag = frame->delivery_tag;
			event->multiple = frame->multiple;
			event->unsent = broker->data.end - broker->data.start;
			return true;
		case OUTBOX_FRAME_RETURN:
			outbox_broker_event(&broker->returned, OUTBOX_EVENT_RETURN,
								frame->code, frame->text);
			broker->return_step = OUTBOX_RETURN_HEADER;
			return false;
		case OUTBOX_FRAME_CHANNEL_FLOW:
			outbox_amqp_put_channel_flow_ok(&broker->control, frame->active);
			return set_blocked(broker, broker->blocked, !frame->active,
							   "channel.flow", event);
		default:
			outbox_broker_violation(broker, "a frame that answers nothing we sent");
			return false;
	}
}

/* Returns true if the frame became an event. */
static bool
handle_frame(OutboxBroker *broker, const OutboxFrame *frame,
			 OutboxBrokerEvent *event)
{
	switch (frame->type)
	{
		case OUTBOX_FRAME_HEARTBEAT:
			return false;		/* that it came is known from its bytes */
		case OUTBOX_FRAME_BLOCKED:
		case OUTBOX_FRAME_UNBLOCKED:
			if (broker->state < OUTBOX_BROKER_CHANNEL)
			{
				/* It would suspend the time limit of the handshake. */
				outbox_broker_violation(broker, "connection.blocked before the connection is open");
				return false;
			}
			return set_blocked(broker, frame->type == OUTBOX_FRAME_BLOCKED,
							   broker->flow_stopped, frame->text, event);
		case OUTBOX_FRAME_CONNECTION_CLOSE:
			connection_close(broker, frame);
			return false;
		case OUTBOX_FRAME_CONNECTION_CLOSE_OK:
			outbox_broker_violation(broker, "a frame that answers nothing we sent");
			return false;
		case OUTBOX_FRAME_START:
		case OUTBOX_FRAME_TUNE:
		case OUTBOX_FRAME_OPEN_OK:
		case OUTBOX_FRAME_CHANNEL_OPEN_OK:
		case OUTBOX_FRAME_CONFIRM_SELECT_OK:
			return outbox_broker_handshake_frame(broker, frame, event);
		default:
			return channel_frame(broker, frame, event);
	}
}

/*
 * Go through the input up to the next event.  Once a connection that has ended
 * has nothing left to say, that it is lost is its last event.
 */
bool
outbox_broker_decode(OutboxBroker *broker, OutboxBrokerEvent *event)
{
	OutboxBuffer *input = &broker->input;
	OutboxFrame frame;

	for (;;)
	{
		bool		is_event;
		size_t		len = input->end - input->start;

		if (len == 0)
			frame.type = OUTBOX_FRAME_INCOMPLETE;
		else
			outbox_amqp_decode((const uint8_t *) input->data + input->start, len,
							   broker->frame_max, &frame);
		if (frame.type == OUTBOX_FRAME_INCOMPLETE)
		{
			if (broker->ending)
			{
				outbox_broker_become_lost(broker, event);
				return true;
			}
			/*
			 * A heartbeat by itself wakes nobody.  Of a frame that has begun any
			 * byte may be the last.
			 */
			outbox_transport_wake_from(&broker->transport,
									   broker->state == OUTBOX_BROKER_READY && len == 0 ?
									   OUTBOX_AMQP_OVERHEAD + 1 : 1);
			return false;
		}
		if (frame.type == OUTBOX_FRAME_MALFORMED)
		{
			outbox_broker_violation(broker, frame.error);
			continue;
		}
		input->start += frame.length;
		is_event = handle_frame(broker, &frame, event);
		/* Also where each frame that is answered is an event. */
		if (broker->control.end - broker->control.start > OUTBOX_BROKER_CONTROL_MAX)
			outbox_broker_violation(broker, "it does not read what we answer");
		if (is_event)
			return true;
	}
}

bool
outbox_broker_next_event(OutboxBroker *broker, OutboxBrokerEvent *event)
{
	if (!broker->have_event)
		return outbox_broker_decode(broker, event);
	*event = broker->event;
	broker->have_event = false;
	return true;
}
