/*
 * connections.c
 *		Owns the connections over which a worker publishes, and that they live
 *		and die together.
 *
 *		The first leads: it follows the settings, has the backoff, and tells
 *		why there is no connection. When it is ready the others are made, to
 *		the same broker, one after the other, so that each has the time limits
 *		and the look-up of the name for itself. Messages are sent while all are
 *		ready. When one is lost, the others are closed, and the first, if it
 *		was not the one, ends with the same words. What was in flight on any of
 *		them is sent again over the next ones.
 *
 *		Why together: outbox.uri may name several brokers, and messages go to
 *		one of them at a time; an ordering key keeps the connection that its
 *		hash gives it (batch.c) for as long as there are so many; and there is
 *		one state, one backoff and one line in the log, as with one connection.
 *
 *		A channel that is closed, as opposed to a connection that is lost, is
 *		opened again at once, and what is in flight on the others stays so.
 *
 *		What the brokers say on them is taken by events.c.
 */
#include "pgcompat.h"

#include "utils/timestamp.h"

#include "connections.h"
#include "settings.h"

/* While all are closed. */
static void
set_count(OutboxConnections *connections, int count)
{
	outbox_batch_set_channels(connections->batch, count);
	while (connections->count > count)
		outbox_broker_destroy(connections->list[--connections->count].broker);
	while (connections->count < count)
	{
		int			number = connections->count++;
		OutboxConnection *connection = &connections->list[number];
		char		name[sizeof(connections->name) + 16];

		strlcpy(name, connections->name, sizeof(name));
		if (number > 0)
			snprintf(name, sizeof(name), "%s %d", connections->name, number + 1);
		connection->broker = outbox_broker_create(connections->context, name);
		connection->channel = &connections->batch->channels[number];
		memset(&connection->stall, 0, sizeof(connection->stall));
	}
}

OutboxConnections *
outbox_connections_create(MemoryContext context, const char *name, OutboxBatch *batch)
{
	OutboxConnections *connections = MemoryContextAllocZero(context, sizeof(OutboxConnections));

	connections->context = context;
	strlcpy(connections->name, name, sizeof(connections->name));
	connections->batch = batch;
	set_count(connections, 1);
	return connections;
}

static void
close_one(OutboxConnections *connections, OutboxConnection *connection)
{
	outbox_broker_close(connection->broker);
	outbox_batch_unsend(connections->batch, connection->channel);
}

void
outbox_connections_close(OutboxConnections *connections)
{
	for (int i = 0; i < connections->count; i++)
		close_one(connections, &connections->list[i]);
}

void
outbox_connections_configure(OutboxConnections *connections)
{
	if (!outbox_enabled || connections->count != outbox_connections)
		outbox_connections_close(connections);
	if (connections->count != outbox_connections)
		set_count(connections, outbox_connections);
	if (!outbox_enabled)
		return;
	for (int i = 0; i < connections->count; i++)
	{
		OutboxBroker *broker = connections->list[i].broker;

		if (i == 0 || outbox_broker_state(broker) != OUTBOX_BROKER_IDLE)
			outbox_broker_configure(broker);
	}
}

/* Is it to be made, now that those before it are ready? */
static bool
is_due(const OutboxConnections *connections, int number)
{
	return number > 0 &&
		outbox_broker_state(connections->list[number].broker) == OUTBOX_BROKER_IDLE &&
		outbox_broker_state(connections->list[number - 1].broker) == OUTBOX_BROKER_READY;
}

void
outbox_connections_turn(OutboxConnections *connections, TimestampTz now)
{
	for (int i = 0; i < connections->count; i++)
	{
		OutboxBroker *broker = connections->list[i].broker;

		if (is_due(connections, i))
		{
			outbox_broker_configure(broker);
			outbox_broker_follow(broker, outbox_connections_first(connections));
		}
		outbox_broker_turn(broker, now);
	}
}

void
outbox_connections_end_others(OutboxConnections *connections, const OutboxConnection *lost)
{
	if (lost != &connections->list[0])
		outbox_broker_end_like(outbox_connections_first(connections), lost->broker);
	for (int i = 1; i < connections->count; i++)
		close_one(connections, &connections->list[i]);
}

OutboxBrokerState
outbox_connections_state(const OutboxConnections *connections)
{
	OutboxBrokerState state = outbox_broker_state(outbox_connections_first(connections));

	for (int i = 1; i < connections->count && state == OUTBOX_BROKER_READY; i++)
	{
		if (outbox_broker_state(connections->list[i].broker) != OUTBOX_BROKER_READY)
			state = OUTBOX_BROKER_CHANNEL;
	}
	return state;
}

bool
outbox_connections_blocked(const OutboxConnections *connections)
{
	for (int i = 0; i < connections->count; i++)
	{
		if (outbox_broker_blocked(connections->list[i].broker))
			return true;
	}
	return false;
}

const char *
outbox_connections_broker_name(const OutboxConnections *connections)
{
	return outbox_broker_name(outbox_connections_first(connections));
}

TimestampTz
outbox_connections_since(const OutboxConnections *connections)
{
	TimestampTz latest = 0;

	for (int i = 0; i < connections->count; i++)
	{
		TimestampTz since = outbox_broker_connected_since(connections->list[i].broker);

		if (since == 0)
			return 0;
		latest = Max(latest, since);
	}
	return latest;
}

bool
outbox_connections_heard_from(const OutboxConnections *connections)
{
	for (int i = 0; i < connections->count; i++)
	{
		if (!outbox_broker_heard_from(connections->list[i].broker))
			return false;
	}
	return true;
}

size_t
outbox_connections_least_unsent(const OutboxConnections *connections)
{
	size_t		least = SIZE_MAX;

	for (int i = 0; i < connections->count; i++)
	{
		const OutboxBuffer *output = outbox_broker_output(connections->list[i].broker);

		least = Min(least, output->end - output->start);
	}
	return least;
}

TimestampTz
outbox_connections_deadline(const OutboxConnections *connections)
{
	TimestampTz deadline = DT_NOEND;

	for (int i = 0; i < connections->count; i++)
	{
		const OutboxConnection *connection = &connections->list[i];

		if (is_due(connections, i))
			return 0;
		deadline = Min(deadline, outbox_broker_deadline(connection->broker));
		deadline = Min(deadline, outbox_stall_deadline(&connection->stall, connections->batch,
													   connection->channel, connection->broker));
	}
	return deadline;
}

void
outbox_connections_follow_clock(OutboxConnections *connections, TimestampTz back)
{
	for (int i = 0; i < connections->count; i++)
		connections->list[i].stall.since -= back;
}
