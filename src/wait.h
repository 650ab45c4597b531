/*
 * wait.h
 *		The one place where the worker sleeps.
 */
#ifndef OUTBOX_WAIT_H
#define OUTBOX_WAIT_H

#include "broker.h"

/* Sleep for `timeout` ms at most, until the latch is set or the socket is ready. */
extern void outbox_wait(const OutboxBroker *broker, long timeout);

#endif							/* OUTBOX_WAIT_H */
