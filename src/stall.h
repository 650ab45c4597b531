/*
 * stall.h
 *		Notices that the broker does not answer for a message: one watch for each
 *		connection, and its channel.
 */
#ifndef OUTBOX_STALL_H
#define OUTBOX_STALL_H

#include "batch.h"
#include "broker.h"

typedef struct OutboxStall
{
	TimestampTz since;			/* the oldest message in flight could have been answered */
	bool		owed;			/* an answer was owed when last looked at */
	size_t		unsent;			/* bytes of output when last looked at */
	uint64		oldest_tag;		/* of those in flight, likewise */
} OutboxStall;

/* When an answer is overdue, DT_NOEND if none is owed. */
extern TimestampTz outbox_stall_deadline(const OutboxStall *stall, OutboxBatch *batch,
										 const OutboxChannel *channel, OutboxBroker *broker);

/*
 * If an answer is overdue, mark the messages that may be the reason
 * (OutboxEntry.suspect) and end the connection; returns true.
 */
extern bool outbox_stall_watch(OutboxStall *stall, OutboxBatch *batch, OutboxChannel *channel,
							   OutboxBroker *broker, TimestampTz now);

#endif							/* OUTBOX_STALL_H */
