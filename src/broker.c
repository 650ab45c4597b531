/*
 * broker.c
 *		The connection to RabbitMQ: its settings, its end, and what the worker
 *		may ask.
 *
 *		One state machine, driven by outbox_broker_turn() in broker_turn.c:
 *
 *			BACKOFF -> RESOLVING -> CONNECTING -> HANDSHAKE -> CHANNEL -> READY
 *			   ^          |             |            |           |  ^       |
 *			   +----------+-------------+------------+-----------+  +-------+
 *			         lost: reported once, in any state         channel closed
 *
 *		Messages pass through READY only. Every other state has a deadline, and
 *		every socket operation is one that does not wait: between two turns the
 *		worker sleeps on its latch, and is never away from it for longer than a
 *		turn takes.
 *
 *		Never here: ereport, elog, or palloc in a place where an error would
 *		leave the machine between two states; a password in a text.
 */
#include "pgcompat.h"

#include "common/hashfn.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "broker_private.h"
#include "settings.h"

#define BACKOFF_FIRST_MS	500
#define BACKOFF_NETWORK_MS	3200	/* 4 s with what varies it */
#define BACKOFF_REFUSED_MS	30000
#define STEADY_MS			10000	/* READY this long: the next failure is a first one */

OutboxBroker *
outbox_broker_create(MemoryContext parent, const char *connection_name)
{
	MemoryContext context = AllocSetContextCreate(parent, "outbox broker",
												  ALLOCSET_DEFAULT_SIZES);
	OutboxBroker *broker = MemoryContextAllocZero(context, sizeof(OutboxBroker));

	broker->context = context;
	broker->connection_name = MemoryContextStrdup(context, connection_name);
	broker->uri_index = -1;
	broker->expected = OUTBOX_FRAME_HEARTBEAT;
	broker->frame_max = OUTBOX_AMQP_FRAME_MAX;
	outbox_transport_init(&broker->transport);
	outbox_buffer_init(&broker->input, context);
	outbox_buffer_init(&broker->data, context);
	outbox_buffer_init(&broker->control, context);

	/* At once: neither grows while the broker reads what it is answered. */
	outbox_buffer_reserve(&broker->input, OUTBOX_BROKER_INPUT);
	outbox_buffer_reserve(&broker->control, OUTBOX_BROKER_CONTROL_MAX);
	return broker;
}

static bool
same_uri(const OutboxUri *a, const OutboxUri *b)
{
	const char *a_password = a->password != NULL ? a->password : "";
	const char *b_password = b->password != NULL ? b->password : "";

	return a->tls == b->tls && a->port == b->port &&
		strcmp(a->user, b->user) == 0 &&
		strcmp(a->host, b->host) == 0 &&
		strcmp(a->vhost, b->vhost) == 0 &&
		(a->password == NULL) == (b->password == NULL) &&
		strcmp(a_password, b_password) == 0;
}

/* Where among the new URIs is the one in use?  -1 if nowhere. */
static int
find_current(const OutboxBroker *broker, const OutboxUri *uris, int count)
{
	if (broker->uri_index < 0)
		return -1;
	for (int i = 0; i < count; i++)
		if (same_uri(&uris[i], &broker->uris[broker->uri_index]))
			return i;
	return -1;
}

/*
 * A goodbye, if it can be said in passing, spares the broker a warning. What is
 * unread would make the kernel reset the connection.
 */
static void
say_goodbye(OutboxBroker *broker)
{
	if (broker->state < OUTBOX_BROKER_CHANNEL || broker->ending ||
		!outbox_broker_can_control(broker))
		return;
	outbox_transport_discard_input(&broker->transport);
	outbox_amqp_put_connection_close(&broker->control);
	outbox_broker_farewell(broker);
}

void
outbox_broker_configure(OutboxBroker *broker)
{
	MemoryContext old = MemoryContextSwitchTo(broker->context);
	OutboxUri  *uris = NULL;
	const char *error = NULL;
	int			count;
	int			current;

	count = outbox_uri_parse(outbox_uri != NULL ? outbox_uri : "", &uris, &error);
	MemoryContextSwitchTo(old);
	current = find_current(broker, uris, count);
	outbox_uri_free(broker->uris, broker->uri_count);
	broker->uris = uris;
	broker->uri_count = Max(count, 0);
	broker->uri_index = current;

	if (broker->state >= OUTBOX_BROKER_RESOLVING && !broker->ending && current >= 0)
		return;
	say_goodbye(broker);
	broker->failures = 0;
	broker->next_attempt = 0;
	if (count < 0)
	{
		/* The check hook refuses such a value; it is not always there to do so. */
		outbox_broker_end(broker, OUTBOX_LOSS_SETTINGS, 0,
						  "outbox.uri cannot be used: %s", error);
		outbox_buffer_reset(&broker->input);
	}
	else if (broker->state >= OUTBOX_BROKER_RESOLVING)
	{
		outbox_broker_end(broker, OUTBOX_LOSS_SETTINGS, 0,
						  "outbox.uri was changed, leaving RabbitMQ at \"%s\"",
						  broker->endpoint);
		broker->loss = OUTBOX_LOSS_SETTINGS;
		outbox_buffer_reset(&broker->input);
	}
	else
		broker->state = count > 0 ? OUTBOX_BROKER_BACKOFF : OUTBOX_BROKER_IDLE;
}

void
outbox_broker_follow(OutboxBroker *broker, const OutboxBroker *other)
{
	/*
	 * The next attempt takes the one after this. The other may be about to leave a
	 * URI that is in the list no more.
	 */
	if (broker->state <= OUTBOX_BROKER_BACKOFF && broker->uri_count == other->uri_count &&
		other->uri_index >= 0)
		broker->uri_index = other->uri_index - 1;
}

/*
 * The connection, or the attempt, has ended. The first reason counts. The
 * state remains until what had arrived before is taken; see
 * outbox_broker_decode().
 */
void
outbox_broker_end(OutboxBroker *broker, OutboxLoss loss, uint16 code,
				  const char *format,...)
{
	char		text[1024];
	va_list		args;

	outbox_transport_close(&broker->transport);
	if (broker->ending)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	outbox_broker_event(&broker->lost, OUTBOX_EVENT_LOST, code, text);
	broker->lost.unsent = broker->data.end - broker->data.start;
	broker->loss = loss;
	broker->ending = true;
}

/* What the broker sent cannot be trusted from here on, so nothing more is read. */
void
outbox_broker_violation(OutboxBroker *broker, const char *why)
{
	outbox_buffer_reset(&broker->input);
	broker->ending = false;
	outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0,
					  "RabbitMQ at \"%s\" broke the protocol: %s",
					  broker->endpoint, why);
}

void
outbox_broker_fail(OutboxBroker *broker, const char *why)
{
	if (broker->state < OUTBOX_BROKER_RESOLVING)
		return;
	outbox_buffer_reset(&broker->input);
	broker->ending = false;
	outbox_broker_end(broker, OUTBOX_LOSS_NETWORK, 0, "left RabbitMQ at \"%s\": %s",
					  broker->endpoint, why);
}

void
outbox_broker_end_like(OutboxBroker *broker, const OutboxBroker *other)
{
	if (broker->state >= OUTBOX_BROKER_RESOLVING)
		outbox_broker_end(broker, other->loss, 0, "%s", other->lost.text);
}

/* Forget the connection, not the settings nor the history of failures. */
static void
forget_connection(OutboxBroker *broker)
{
	outbox_transport_close(&broker->transport);
	outbox_broker_forget_output(broker);
	outbox_buffer_reset(&broker->input);
	broker->return_step = OUTBOX_RETURN_NONE;
	broker->expected = OUTBOX_FRAME_HEARTBEAT;
	broker->frame_max = OUTBOX_AMQP_FRAME_MAX;
	broker->heartbeat = 0;
	broker->blocked = broker->flow_stopped = false;
	broker->connected_since = 0;
	broker->ending = false;
}

/*
 * Doubling delays, each varied by a quarter up or down so that the workers of
 * many databases do not all come at once to a broker that has just started.
 */
static TimestampTz
backoff(OutboxBroker *broker)
{
	int			longest = broker->loss == OUTBOX_LOSS_REFUSED ?
		BACKOFF_REFUSED_MS : BACKOFF_NETWORK_MS;
	int			delay = Min(BACKOFF_FIRST_MS << Min(broker->failures, 10), longest);
	uint32		dice = murmurhash32((uint32) broker->now ^ (uint32) MyProcPid);

	return MS(delay) * 3 / 4 + MS(delay) / 2 * (dice % 1024) / 1024;
}

/* The last act of a connection that has ended: LOST, and the wait for the next. */
void
outbox_broker_become_lost(OutboxBroker *broker, OutboxBrokerEvent *event)
{
	*event = broker->lost;
	event->intended = broker->loss == OUTBOX_LOSS_SETTINGS;
	if (broker->connected_since != 0 &&
		broker->now - broker->connected_since >= MS(STEADY_MS))
		broker->failures = 0;
	if (broker->loss == OUTBOX_LOSS_SETTINGS)
		broker->next_attempt = 0;
	else
	{
		broker->next_attempt = broker->now + backoff(broker);
		broker->failures++;
	}
	forget_connection(broker);
	broker->state = broker->uri_count > 0 ? OUTBOX_BROKER_BACKOFF : OUTBOX_BROKER_IDLE;
}

/* Every phase may take as long as the whole of connecting. */
void
outbox_broker_start_phase(OutboxBroker *broker)
{
	broker->phase_deadline = broker->now + MS(outbox_connect_timeout);
}

OutboxBrokerState
outbox_broker_state(const OutboxBroker *broker)
{
	return broker->state;
}

bool
outbox_broker_blocked(const OutboxBroker *broker)
{
	return broker->blocked || broker->flow_stopped;
}

TimestampTz
outbox_broker_connected_since(const OutboxBroker *broker)
{
	return broker->connected_since;
}

bool
outbox_broker_heard_from(const OutboxBroker *broker)
{
	return broker->connected_since != 0 &&
		broker->last_received > broker->connected_since;
}

const char *
outbox_broker_name(const OutboxBroker *broker)
{
	return broker->name;
}

OutboxBuffer *
outbox_broker_output(OutboxBroker *broker)
{
	return &broker->data;
}

uint32
outbox_broker_frame_max(const OutboxBroker *broker)
{
	return broker->frame_max;
}

pgsocket
outbox_broker_socket(const OutboxBroker *broker)
{
	return broker->transport.socket;
}

uint32
outbox_broker_generation(const OutboxBroker *broker)
{
	return broker->transport.generation;
}

uint32
outbox_broker_wanted(const OutboxBroker *broker)
{
	bool		room = broker->input.end - broker->input.start < broker->input.size;

	return outbox_transport_wanted(&broker->transport, room,
								   outbox_broker_want_write(broker));
}

TimestampTz
outbox_broker_deadline(const OutboxBroker *broker)
{
	TimestampTz at = DT_NOEND;

	if (broker->have_event || broker->ending ||
		outbox_transport_pending(&broker->transport))
		return broker->now;
	switch (broker->state)
	{
		case OUTBOX_BROKER_IDLE:
			break;
		case OUTBOX_BROKER_BACKOFF:
			at = broker->next_attempt;
			break;
		case OUTBOX_BROKER_RESOLVING:
			at = Min(broker->phase_deadline, broker->poll_at);
			break;
		case OUTBOX_BROKER_CONNECTING:
			at = broker->transport.address_deadline;
			break;
		case OUTBOX_BROKER_HANDSHAKE:
		case OUTBOX_BROKER_CHANNEL:
			if (!broker->blocked)
				at = broker->phase_deadline;
			break;
		case OUTBOX_BROKER_READY:
			break;
	}
	if (broker->heartbeat > 0)
	{
		at = Min(at, broker->last_received + MS(broker->heartbeat * 2000));
		if (outbox_broker_can_control(broker))
			at = Min(at, broker->last_sent + MS(broker->heartbeat * 500));
	}
	return at;
}

void
outbox_broker_close(OutboxBroker *broker)
{
	say_goodbye(broker);
	forget_connection(broker);
	broker->have_event = false;
	broker->state = OUTBOX_BROKER_IDLE;
}

void
outbox_broker_destroy(OutboxBroker *broker)
{
	outbox_broker_close(broker);
	/* They may hold passwords. */
	outbox_uri_free(broker->uris, broker->uri_count);
	MemoryContextDelete(broker->context);
}
