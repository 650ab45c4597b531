/*
 * wait.c
 *		The one place where the worker sleeps, so that everything that may want
 *		it awake is listed here: its latch, the socket, the end of the
 *		postmaster, and a time.
 *
 *		On entry: no transaction, no snapshot, no lock but the publisher lock.
 *		The caller goes on to CHECK_FOR_INTERRUPTS().
 */
#include "pgcompat.h"

#include "utils/memutils.h"

#include "wait.h"

static WaitEventSet *set;
static uint32 generation;		/* of the socket in the set */
static uint32 wanted;			/* events of the socket in the set */
static int	socket_pos = -1;	/* -1: no socket in the set */

/* A wait event set cannot forget a socket: make a new one for each. */
static void
prepare_set(const OutboxBroker *broker)
{
	uint32		now_wanted = outbox_broker_wanted(broker);
	pgsocket	sock = outbox_broker_socket(broker);
	bool		has_socket = sock != PGINVALID_SOCKET && now_wanted != 0;

	if (set && generation == outbox_broker_generation(broker) &&
		has_socket == (socket_pos >= 0))
	{
		if (has_socket && now_wanted != wanted)
			ModifyWaitEvent(set, socket_pos, now_wanted, NULL);
		wanted = now_wanted;
		return;
	}
	if (set)
		FreeWaitEventSet(set);
	set = outbox_create_wait_event_set(3);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	socket_pos = has_socket ? AddWaitEventToSet(set, now_wanted, sock, NULL, NULL) : -1;
	generation = outbox_broker_generation(broker);
	wanted = now_wanted;
}

void
outbox_wait(const OutboxBroker *broker, long timeout)
{
	static uint32 wait_event = 0;
	WaitEvent	events[3];
	int			count;

	if (wait_event == 0)
		wait_event = outbox_wait_event("OutboxWorkerMain");
	prepare_set(broker);
	count = WaitEventSetWait(set, timeout, events, lengthof(events), wait_event);
	for (int i = 0; i < count; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
	}
}
