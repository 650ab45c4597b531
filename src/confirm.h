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
 * The broker speaks UTF-8: what this database may have no room for becomes question
 * marks, in place.
 */
extern void outbox_fit_encoding(char *text);

/*
 * Take the next event of a connection, its words in the encoding of the database;
 * false if there is none.
 */
extern bool outbox_confirm_next_event(OutboxBroker *broker, OutboxBrokerEvent *event);

/*
 * Apply one event of a channel, or of its connection, to the batch. Returns NULL,
 * or, if the event makes no sense, why: the connection is then to be ended.
 */
extern const char *outbox_confirm_apply(OutboxBatch *batch, OutboxChannel *channel,
										const OutboxBrokerEvent *event, OutboxTally *tally);

/* Code of AMQP: the broker is shut down, or an operator closed us. */
#define OUTBOX_CONNECTION_FORCED 320

#define OUTBOX_NACKED_TEXT "refused by RabbitMQ (basic.nack): a queue is full, or not available"

/* What a basic.return says, palloc'd in `context`. */
extern char *outbox_confirm_return_text(MemoryContext context, const OutboxBrokerEvent *event);

/* Does a channel closed with these words mean that an exchange is missing or forbidden? */
extern bool outbox_confirm_blames_exchange(uint16 code, const char *text);

#endif							/* OUTBOX_CONFIRM_H */
