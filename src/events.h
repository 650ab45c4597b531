/*
 * events.h
 *		What the brokers have said, to whom it concerns.
 */
#ifndef OUTBOX_EVENTS_H
#define OUTBOX_EVENTS_H

#include "connections.h"
#include "shmem.h"

/*
 * Take all of it: to the batch, to the log and to outbox.status. If one connection
 * is lost, or overdue with an answer, all end.
 */
extern void outbox_events_take(OutboxConnections *connections, OutboxSlot *slot,
							   TimestampTz now);

#endif							/* OUTBOX_EVENTS_H */
