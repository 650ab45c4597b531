/*
 * events.c
 *		Step 6 of a message's path, as the worker takes it: what the brokers say
 *		goes to the batch (confirm.c), and to the log and outbox.status
 *		(report.c).
 *
 *		Owns that all connections have their say before they end because one of
 *		them has been lost, or is overdue with an answer (stall.c).
 *
 *		On entry: a turn of the connections has been made. Must never wait, nor
 *		touch a table.
 */
#include "pgcompat.h"

#include "confirm.h"
#include "events.h"
#include "report.h"

/* True if it turns out to be lost. */
static bool
take_events_of(OutboxConnections *connections, OutboxConnection *connection,
			   OutboxSlot *slot, OutboxTally *tally)
{
	bool		first = connection == &connections->list[0];
	OutboxBrokerEvent event;
	bool		lost = false;

	while (outbox_confirm_next_event(connection->broker, &event))
	{
		const char *nonsense;

		lost = lost || event.type == OUTBOX_EVENT_LOST;
		/* That another one is lost the first one is about to say. */
		if (event.type != OUTBOX_EVENT_ACK && event.type != OUTBOX_EVENT_NACK &&
			(event.type != OUTBOX_EVENT_LOST || first))
			outbox_report_event(slot, &event, connections);
		nonsense = outbox_confirm_apply(connections->batch, connection->channel, &event, tally);
		if (nonsense)
			outbox_broker_fail(connection->broker, nonsense);
	}
	return lost;
}

/* All have their say; if one turns out to be lost, the others are ended. */
static void
take_all(OutboxConnections *connections, OutboxSlot *slot)
{
	OutboxConnection *first = &connections->list[0];
	OutboxConnection *lost = NULL;
	OutboxTally tally = {0};

	/*
	 * What the broker had confirmed before counts, so none ends before all have been
	 * heard. The first comes last, since it ends when another has.
	 */
	for (int i = 1; i < connections->count; i++)
	{
		if (take_events_of(connections, &connections->list[i], slot, &tally))
			lost = &connections->list[i];
	}
	if (lost)
		outbox_connections_end_others(connections, lost);
	if (take_events_of(connections, first, slot, &tally))
		outbox_connections_end_others(connections, first);
	outbox_report_counts(slot, connections->batch->in_flight, &tally);
}

void
outbox_events_take(OutboxConnections *connections, OutboxSlot *slot, TimestampTz now)
{
	bool		overdue = false;

	take_all(connections, slot);
	for (int i = 0; i < connections->count; i++)
	{
		OutboxConnection *connection = &connections->list[i];

		if (outbox_stall_watch(&connection->stall, connections->batch, connection->channel,
							   connection->broker, now))
			overdue = true;
	}
	/* All end with it now: what was sent on the others meanwhile would be sent twice. */
	if (overdue)
		take_all(connections, slot);
}
