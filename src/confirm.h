/*
 * confirm.h
 *		What the broker's answers mean for the messages in flight.
 */
#ifndef OUTBOX_CONFIRM_H
#define OUTBOX_CONFIRM_H

#include "batch.h"
#include "broker.h"

/* How many messages an event settled. */
typedef struct OutboxTally
{
	uint64		confirmed;
	uint64		returned;
	uint64		nacked;
} OutboxTally;

/*
 * Apply one event to the batch. Returns NULL, or, if the event makes no sense,
 * why: the connection is then to be ended.
 */
extern const char *outbox_confirm_apply(OutboxBatch *batch, const OutboxBrokerEvent *event,
										OutboxTally *tally);

#endif							/* OUTBOX_CONFIRM_H */
