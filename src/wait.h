/*
 * wait.h
 *		The one place where the worker sleeps.
 */
#ifndef OUTBOX_WAIT_H
#define OUTBOX_WAIT_H

#include "broker.h"
#include "settings.h"

#define OUTBOX_WAIT_MAX (OUTBOX_CONNECTIONS_MAX + 1)	/* the publisher's, and that of probe.c */

/*
 * Sleep for `timeout` ms at most, until the latch is set or one of the sockets is
 * ready.
 */
extern void outbox_wait(const OutboxBroker *const brokers[], int count, long timeout);

#endif							/* OUTBOX_WAIT_H */
