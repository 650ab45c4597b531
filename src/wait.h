/*
 * wait.h
 *		The one place where the worker sleeps.
 */
#ifndef OUTBOX_WAIT_H
#define OUTBOX_WAIT_H

#include "broker.h"

#define OUTBOX_CONNECTIONS 2	/* the publisher's, and that of probe.c */

/* Sleep for `timeout` ms at most, until the latch is set or a socket is ready. */
extern void outbox_wait(const OutboxBroker *const brokers[OUTBOX_CONNECTIONS], long timeout);

#endif							/* OUTBOX_WAIT_H */
