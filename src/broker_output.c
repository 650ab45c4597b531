/*
 * broker_output.c
 *		The order in which bytes go to the broker.
 *
 *		There are two buffers. `data` holds the messages that the caller
 *		appended: whole messages, each a basic.publish frame, a content header
 *		frame and body frames; those behind `sendable` may wait for the
 *		durability gate for as long as a standby is away. `control` holds what
 *		the connection itself has to say: handshake, heartbeat, flow-ok,
 *		close-ok; it may never wait for the gate, so it has a buffer of its
 *		own, without a mark.
 *
 *		The rule: control goes out only between messages, and while control
 *		waits, no new message is begun. Why between messages and not just
 *		between frames: RabbitMQ assembles a publish frame by frame and answers
 *		channel.close-ok in its midst with a connection error (505
 *		UNEXPECTED_FRAME), also on a channel that it is about to close. Why
 *		this delays nothing that matters: `sendable` lies between messages as
 *		well, so that the rest of a begun message never waits for the gate,
 *		only for the socket; and while bytes of it move they tell the broker as
 *		much as a heartbeat would ("any sent octet is a valid substitute"), and
 *		while none move no heartbeat would either.
 *
 *		Where a message ends is read from the bytes themselves: frame_left
 *		counts down the frame in progress, and a message ends where the next
 *		frame is a method frame or where there is none.
 *
 *		Invariants: frame_left is 0 or the exact rest of the frame that begins
 *		before data.start; a partly sent control frame implies that data is
 *		between messages, for it was when the frame began and nothing of data
 *		was sent since.
 */
#include "pgcompat.h"

#include "port/pg_bswap.h"

#include "broker_private.h"
#include "faultpoint.h"

#define FRAME_METHOD	1

/* Bytes sent per turn, so that a fast reader cannot keep us from the latch. */
#define SEND_BUDGET		((size_t) 1024 * 1024)

/* Length of the frame that begins at `at`; it is one of ours and whole. */
static size_t
frame_length(const char *at)
{
	uint32		size;

	memcpy(&size, at + 3, sizeof(size));
	return (size_t) pg_ntoh32(size) + OUTBOX_AMQP_OVERHEAD;
}

bool
outbox_broker_between_messages(const OutboxBroker *broker)
{
	const OutboxBuffer *data = &broker->data;

	return broker->frame_left == 0 &&
		(data->start == data->end || data->data[data->start] == FRAME_METHOD);
}

/* Bytes from data.start to the end of the message that is partly sent. */
static size_t
rest_of_message(const OutboxBroker *broker)
{
	const OutboxBuffer *data = &broker->data;
	size_t		pos = data->start + broker->frame_left;

	while (pos < data->end && data->data[pos] != FRAME_METHOD)
		pos += frame_length(data->data + pos);
	return pos - data->start;
}

static bool
control_waits(const OutboxBroker *broker)
{
	return broker->control.start < broker->control.end;
}

/*
 * How much of data may be sent now?  While the broker blocks us only the rest of
 * a message: it would not read more, and what lies in the socket's buffer stands
 * before our heartbeats.
 */
static size_t
data_allowance(const OutboxBroker *broker)
{
	size_t		sendable = broker->data.sendable - broker->data.start;

	if (sendable > 0 &&
		(control_waits(broker) || broker->state != OUTBOX_BROKER_READY ||
		 broker->blocked || broker->flow_stopped))
		return Min(sendable, rest_of_message(broker));
	return sendable;
}

/* May a control frame be added, with nothing before it that could hold it up? */
bool
outbox_broker_can_control(const OutboxBroker *broker)
{
	return !control_waits(broker) && outbox_broker_between_messages(broker);
}

bool
outbox_broker_want_write(const OutboxBroker *broker)
{
	if (control_waits(broker) && outbox_broker_between_messages(broker))
		return true;
	return data_allowance(broker) > 0;
}

static void
control_sent(OutboxBroker *broker, size_t len)
{
	OutboxBuffer *control = &broker->control;

	control->start += len;
	if (control->start < control->end)
		return;
	if (broker->secret)
		explicit_bzero(control->data, control->size);
	broker->secret = false;
	outbox_buffer_reset(control);
}

/* Walk over what was sent, so that frame_left is right for what was not. */
static void
data_sent(OutboxBroker *broker, size_t len)
{
	OutboxBuffer *data = &broker->data;

	while (len > 0)
	{
		size_t		step;

		if (broker->frame_left == 0)
			broker->frame_left = frame_length(data->data + data->start);
		step = Min(len, broker->frame_left);
		data->start += step;
		broker->frame_left -= step;
		len -= step;
	}
	if (data->start == data->end)
		outbox_buffer_reset(data);
}

/*
 * Send what may go and the socket takes. Returns false if the stream has
 * ended, with the reason in transport.error.
 */
bool
outbox_broker_send(OutboxBroker *broker)
{
	size_t		budget = SEND_BUDGET;

	while (budget > 0)
	{
		bool		control = control_waits(broker) && outbox_broker_between_messages(broker);
		OutboxBuffer *buffer = control ? &broker->control : &broker->data;
		size_t		len = control ? buffer->end - buffer->start :
			data_allowance(broker);
		ssize_t		sent;

		len = Min(len, budget);
		if (len == 0)
			return true;
		sent = outbox_transport_write(&broker->transport,
									  buffer->data + buffer->start, len);
		if (sent < 0)
			return false;
		if (sent == 0)
			return true;
		broker->last_sent = broker->now;
		if (control)
			control_sent(broker, (size_t) sent);
		else
		{
			data_sent(broker, (size_t) sent);
			OUTBOX_FAULTPOINT("socket-took");
		}
		if ((size_t) sent < len)
			return true;
		budget -= len;
	}
	return true;
}

/*
 * The channel is closed: of the messages not yet sent, only the rest of one
 * that was begun still goes out, since the broker is assembling it; it will
 * ignore it. A message sent behind our close-ok would be an error of the
 * connection.
 */
void
outbox_broker_drop_unsent(OutboxBroker *broker)
{
	OutboxBuffer *data = &broker->data;

	data->end = data->start + rest_of_message(broker);
	data->sendable = data->end;
	if (data->start == data->end)
		outbox_buffer_reset(data);
}

/* The connection is gone, or READY begins anew. */
void
outbox_broker_forget_output(OutboxBroker *broker)
{
	outbox_buffer_reset(&broker->data);
	broker->frame_left = 0;
	if (broker->secret)
		explicit_bzero(broker->control.data, broker->control.size);
	broker->secret = false;
	outbox_buffer_reset(&broker->control);
}

/* Try once to send the control frames that have just been added before a close. */
void
outbox_broker_farewell(OutboxBroker *broker)
{
	OutboxBuffer *control = &broker->control;

	if (broker->transport.connected && outbox_broker_between_messages(broker))
		(void) outbox_transport_write(&broker->transport,
									  control->data + control->start,
									  control->end - control->start);
}
