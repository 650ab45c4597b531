/*
 * wait.c
 *		The one place where the worker sleeps, so that everything that may want
 *		it awake is listed here: its latch, the sockets, the end of the
 *		postmaster, and a time.
 *
 *		On entry: no transaction, no snapshot, no lock but the publisher lock.
 *		The latch is reset, so the caller looks at what others want of it before
 *		it comes here again (is_called() in worker.c), but for the last moments of
 *		a connection.
 */
#include "pgcompat.h"

#include "utils/memutils.h"

#include "wait.h"

#define MAX_EVENTS (2 + OUTBOX_WAIT_MAX)

/* What the set has of a connection. */
typedef struct Watched
{
	uint32		generation;		/* of the socket */
	uint32		wanted;			/* events */
	int			pos;			/* in the set, -1: not there */
} Watched;

static WaitEventSet *set;
static Watched watched[OUTBOX_WAIT_MAX];
static int	watched_count;

static bool
has_socket(const OutboxBroker *broker)
{
	return outbox_broker_socket(broker) != PGINVALID_SOCKET && outbox_broker_wanted(broker) != 0;
}

/* Does the set have the sockets that there are, and no other? */
static bool
set_is_right(const OutboxBroker *const brokers[], int count)
{
	if (set == NULL || watched_count != count)
		return false;
	for (int i = 0; i < count; i++)
	{
		if (watched[i].generation != outbox_broker_generation(brokers[i]) ||
			has_socket(brokers[i]) != (watched[i].pos >= 0))
			return false;
	}
	return true;
}

/* A wait event set cannot forget a socket: make a new one for each. */
static void
make_set(const OutboxBroker *const brokers[], int count)
{
	if (set)
		FreeWaitEventSet(set);
	set = outbox_create_wait_event_set(MAX_EVENTS);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	watched_count = count;
	for (int i = 0; i < count; i++)
	{
		watched[i].generation = outbox_broker_generation(brokers[i]);
		watched[i].wanted = outbox_broker_wanted(brokers[i]);
		watched[i].pos = !has_socket(brokers[i]) ? -1 :
			AddWaitEventToSet(set, watched[i].wanted, outbox_broker_socket(brokers[i]), NULL, NULL);
	}
}

static void
prepare_set(const OutboxBroker *const brokers[], int count)
{
	if (!set_is_right(brokers, count))
		make_set(brokers, count);
	for (int i = 0; i < count; i++)
	{
		uint32		wanted = outbox_broker_wanted(brokers[i]);

		if (watched[i].pos >= 0 && wanted != watched[i].wanted)
			ModifyWaitEvent(set, watched[i].pos, wanted, NULL);
		watched[i].wanted = wanted;
	}
}

void
outbox_wait(const OutboxBroker *const brokers[], int count, long timeout)
{
	static uint32 wait_event = 0;
	WaitEvent	events[MAX_EVENTS];
	int			happened;

	Assert(count <= OUTBOX_WAIT_MAX);
	if (wait_event == 0)
		wait_event = outbox_wait_event("OutboxWorkerMain");
	prepare_set(brokers, count);
	happened = WaitEventSetWait(set, timeout, events, lengthof(events), wait_event);
	for (int i = 0; i < happened; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
	}
}
