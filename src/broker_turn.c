/*
 * broker_turn.c
 *		One turn of the connection to RabbitMQ: each state's step, without
 *		waiting.
 *
 *		From a wish to be connected to bytes that move; what the bytes of a
 *		batch are and which of them may go is broker_output.c. On entry `now`
 *		is the time, and it stays the same for the whole turn. A step either
 *		leaves the state, or leaves something to wait for: the socket or
 *		outbox_broker_deadline().
 *
 *		Never here: a call that waits, ereport, palloc.
 */
#include "pgcompat.h"

#include "broker_private.h"
#include "settings.h"

#define POLL_MIN_MS			1
#define POLL_MAX_MS			20

/* host:port as it is written in texts, host:port/vhost as it is shown in status. */
static void
set_names(OutboxBroker *broker, const OutboxUri *uri)
{
	char		name[2 * OUTBOX_URI_NAME_MAX + 32];
	bool		brackets = strchr(uri->host, ':') != NULL;

	snprintf(broker->endpoint, sizeof(broker->endpoint), "%s%s%s:%d",
			 brackets ? "[" : "", uri->host, brackets ? "]" : "", uri->port);
	snprintf(name, sizeof(name), "%s/%s", broker->endpoint,
			 strcmp(uri->vhost, "/") == 0 ? "" : uri->vhost);
	outbox_amqp_printable(broker->name, sizeof(broker->name), name, strlen(name));
}

/* LOST must have been taken before, or the caller could mix up two connections. */
static void
step_backoff(OutboxBroker *broker)
{
	if (broker->have_event || broker->now < broker->next_attempt)
		return;
	broker->uri_index = (broker->uri_index + 1) % broker->uri_count;
	set_names(broker, &broker->uris[broker->uri_index]);
	broker->poll_delay_ms = POLL_MIN_MS;
	broker->poll_at = 0;
	broker->state = OUTBOX_BROKER_RESOLVING;
	outbox_broker_start_phase(broker);
}

static void
connect_failed(OutboxBroker *broker, OutboxLoss loss, const char *why)
{
	outbox_broker_end(broker, loss, 0,
					  "could not connect to RabbitMQ at \"%s\": %s",
					  broker->endpoint, why);
}

static void
connect_progress(OutboxBroker *broker, OutboxTransportStatus status)
{
	if (status == OUTBOX_TRANSPORT_DONE)
	{
		broker->last_sent = broker->last_received = broker->now;
		outbox_broker_handshake_begin(broker);
	}
	else if (status == OUTBOX_TRANSPORT_FAILED)
		connect_failed(broker, broker->transport.refused ?
					   OUTBOX_LOSS_REFUSED : OUTBOX_LOSS_NETWORK,
					   broker->transport.error);
	else
		broker->state = OUTBOX_BROKER_CONNECTING;
}

static void
step_resolving(OutboxBroker *broker)
{
	const OutboxUri *uri = &broker->uris[broker->uri_index];
	OutboxTransport *transport = &broker->transport;
	const char *error = NULL;
	int			count = 0;

	if (broker->now < broker->poll_at && broker->now < broker->phase_deadline)
		return;
	switch (outbox_resolve(uri->host, uri->port, broker->now,
						   transport->addresses, &count, &error))
	{
		case OUTBOX_RESOLVE_DONE:
			connect_progress(broker,
							 outbox_transport_connect_start(transport, uri->tls, count,
															broker->now,
															broker->phase_deadline));
			break;
		case OUTBOX_RESOLVE_FAILED:
			connect_failed(broker, OUTBOX_LOSS_NETWORK, error);
			break;
		case OUTBOX_RESOLVE_RUNNING:
			if (broker->now >= broker->phase_deadline)
				connect_failed(broker, OUTBOX_LOSS_NETWORK,
							   "the name look-up took too long");
			broker->poll_at = broker->now + MS(broker->poll_delay_ms);
			broker->poll_delay_ms = Min(broker->poll_delay_ms * 2, POLL_MAX_MS);
			break;
	}
}

static void
step_connecting(OutboxBroker *broker)
{
	connect_progress(broker, outbox_transport_connect_continue(&broker->transport,
															   broker->now));
}

/* What an attempt that is past connecting was about, for texts. */
static const char *
doing(const OutboxBroker *broker)
{
	switch (broker->expected)
	{
		case OUTBOX_FRAME_START:
			return "before login";
		case OUTBOX_FRAME_TUNE:
			return "while logging in";
		case OUTBOX_FRAME_OPEN_OK:
			return "while opening the virtual host";
		default:
			return "while opening a channel";
	}
}

/* The stream has ended; what that means depends on how far we had come. */
static void
stream_ended(OutboxBroker *broker)
{
	const char *why = broker->transport.error;

	if (broker->state != OUTBOX_BROKER_HANDSHAKE)
		outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0,
						  "lost the connection to RabbitMQ at \"%s\": %s",
						  broker->endpoint, why);
	else if (broker->expected == OUTBOX_FRAME_TUNE)
		outbox_broker_end(broker, OUTBOX_LOSS_REFUSED, 0,
						  "RabbitMQ at \"%s\" ended the connection during the login of user \"%s\", "
						  "whose password may be wrong: %s", broker->endpoint,
						  broker->uris[broker->uri_index].user, why);
	else
		outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0,
						  "RabbitMQ at \"%s\" ended the connection %s: %s",
						  broker->endpoint, doing(broker), why);
}

/*
 * Read what there is, up to the size of the buffer. Returns false if nothing
 * was tried, since the events in the buffer have not been taken.
 */
static bool
read_input(OutboxBroker *broker)
{
	OutboxBuffer *input = &broker->input;
	size_t		used = input->end - input->start;
	ssize_t		got;

	if (used == input->size)
		return false;
	if (input->start > 0)
	{
		memmove(input->data, input->data + input->start, used);
		input->start = 0;
		input->end = used;
	}
	do
	{
		size_t		room = input->size - input->end;

		got = outbox_transport_read(&broker->transport, input->data + input->end, room);
		if (got <= 0)
			break;
		input->end += (size_t) got;
		broker->last_received = broker->now;
	} while (input->end < input->size);
	if (got < 0)
		stream_ended(broker);
	return true;
}

static void
check_time(OutboxBroker *broker, bool have_read)
{
	if (broker->state != OUTBOX_BROKER_READY && !broker->blocked &&
		broker->now >= broker->phase_deadline)
	{
		outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0,
						  "RabbitMQ at \"%s\" did not answer within %d ms %s",
						  broker->endpoint, outbox_connect_timeout, doing(broker));
		return;
	}
	if (broker->heartbeat == 0)
		return;

	/* Silence counts only if we listened: we may have been away ourselves. */
	if (have_read && broker->now - broker->last_received >= MS(broker->heartbeat * 2000))
		outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0,
						  "no heartbeat from RabbitMQ at \"%s\" for %d s",
						  broker->endpoint, broker->heartbeat * 2);
	/* A turn that is made before it is due (outbox_broker_deadline) spares one of its own. */
	else if (broker->now - broker->last_sent >= MS(broker->heartbeat * 250) &&
			 outbox_broker_can_control(broker))
		outbox_amqp_put_heartbeat(&broker->control);
}

/* HANDSHAKE, CHANNEL and READY: bytes in, frames of the handshake, time, bytes out. */
static void
step_traffic(OutboxBroker *broker)
{
	bool		have_read = read_input(broker);

	if (!broker->have_event)
		broker->have_event = outbox_broker_decode(broker, &broker->event);
	if (broker->ending || broker->state < OUTBOX_BROKER_HANDSHAKE)
		return;
	check_time(broker, have_read);
	if (broker->ending || outbox_broker_send(broker))
		return;

	/* The broker's reason, connection.close, may have come before the reset. */
	read_input(broker);
	stream_ended(broker);
}

/*
 * The clock was set back: what is still to come moves along, or we would stay
 * disconnected, or send no heartbeat, until the clock is where it was.
 */
static void
follow_clock(OutboxBroker *broker, TimestampTz back)
{
	broker->next_attempt -= back;
	broker->phase_deadline -= back;
	broker->poll_at -= back;
	broker->last_sent -= back;
	broker->last_received -= back;
	broker->transport.deadline -= back;
	broker->transport.address_deadline -= back;
}

void
outbox_broker_turn(OutboxBroker *broker, TimestampTz now)
{
	OutboxBrokerState before;

	if (now < broker->now)
		follow_clock(broker, broker->now - now);
	broker->now = now;
	do
	{
		if (broker->ending)
			return;				/* until next_event has reported LOST */
		before = broker->state;
		switch (before)
		{
			case OUTBOX_BROKER_IDLE:
				break;
			case OUTBOX_BROKER_BACKOFF:
				step_backoff(broker);
				break;
			case OUTBOX_BROKER_RESOLVING:
				step_resolving(broker);
				break;
			case OUTBOX_BROKER_CONNECTING:
				step_connecting(broker);
				break;
			case OUTBOX_BROKER_HANDSHAKE:
			case OUTBOX_BROKER_CHANNEL:
			case OUTBOX_BROKER_READY:
				step_traffic(broker);
				break;
		}
	} while (broker->state != before);
}
