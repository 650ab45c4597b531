/*
 * worker.c
 *		The process that publishes the messages of one database, and the only file
 *		that knows the order of the steps:
 *
 *		3 cursor    open a window: committed since last time   (cursor.c, horizon.c)
 *		4 durable   flush WAL, wait for standbys               (durable.c)
 *		5 publish   encode into the broker's output            (publish.c)
 *		6 confirm   what the broker answers settles messages   (confirm.c)
 *		7 progress  record what is settled, set aside the rest (progress.c)
 *		8 segment   rotate, empty what is settled              (segment.c)
 *
 *		Each turn of the loop takes every step as far as it goes without waiting, and
 *		then sleeps in the one place where this process sleeps: wait_for_something().
 *		No transaction, snapshot or lock is held there, but for the publisher lock,
 *		which ensures that there is one publisher per database whatever the launcher
 *		believes.
 *
 *		An error ends the process: it is shown in outbox.status, and the launcher
 *		starts another worker, which begins at the progress that was recorded.
 *		Nothing in memory is worth saving that a crash could not destroy as well.
 *
 *		SIGTERM (shutdown, pg_terminate_backend) is answered in order: collect the
 *		confirms that arrive within FAREWELL_MS, record them, leave.
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/procsignal.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "confirm.h"
#include "control.h"
#include "deferred.h"
#include "progress.h"
#include "publish.h"
#include "report.h"
#include "segment.h"
#include "session.h"
#include "settings.h"
#include "shmem.h"
#include "worker.h"

#define FAREWELL_MS			150		/* wait so long for confirms when told to leave */
#define LOCKED_RETRY_MS		100		/* somebody has locked our tables */
#define GATE_POLL_MS		2		/* look at the standbys again */
#define HEALTHY_MS			30000	/* a start that lasts so long was no failure */

#define PUBLISHER_LOCK_KEY1 0x6f757462	/* "outb" */
#define PUBLISHER_LOCK_KEY2 0x6f780001

typedef struct Worker
{
	OutboxSlot *slot;
	OutboxPublisher publisher;
	OutboxRecorder recorder;
	OutboxControl control;
	uint32		control_seen;
	int			open_segment;

	bool		hungry;			/* there may be something to read */
	bool		leaving;
	bool		emptying_due;	/* progress was recorded since the last attempt */
	TimestampTz started_at;
	TimestampTz now;
	TimestampTz next_poll;
	TimestampTz next_due;		/* of deferred */
	TimestampTz next_upkeep;
	TimestampTz locked_until;	/* our tables were locked: not before */

	WaitEventSet *wait_set;
	uint32		wait_generation;
	uint32		wait_wanted;
	int			wait_socket_pos;	/* -1: the set has no socket */
} Worker;

static Worker *worker;

/* ---- the process ---- */

static void
detach(int code, Datum arg)
{
	OutboxSlot *slot = worker->slot;

	if (worker->publisher.broker)
		outbox_broker_close(worker->publisher.broker);
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (slot->pid == MyProcPid)
	{
		slot->pid = 0;
		slot->state = OUTBOX_WORKER_STOPPED;
		slot->connected_since = 0;
		pg_atomic_write_u64(&slot->in_flight, 0);
		if (code == 0 || GetCurrentTimestamp() - worker->started_at > HEALTHY_MS * INT64CONST(1000))
		{
			slot->failures = 0;
			slot->next_start = 0;
		}
	}
	LWLockRelease(outbox_shared->lock);
	outbox_shmem_wake_launcher();
}

/* Take the slot of this database; leave if there is no place for this process. */
static void
attach(void)
{
	OutboxSlot *slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = outbox_shmem_find(MyDatabaseId);
	if (slot == NULL || slot->pid != 0 || slot->quiesced_by != 0)
	{
		LWLockRelease(outbox_shared->lock);
		proc_exit(0);
	}
	worker->slot = slot;
	slot->pid = MyProcPid;
	slot->procno = outbox_my_procno();
	slot->announced = false;	/* from here on we see what was announced */
	slot->state = OUTBOX_WORKER_STARTING;
	slot->started_at = worker->started_at;
	pg_atomic_write_u32(&slot->reload, 0);
	LWLockRelease(outbox_shared->lock);
	before_shmem_exit(detach, (Datum) 0);
}

/* Leave for good unless this database has the extension. */
static void
require_extension(void)
{
	bool		present;

	StartTransactionCommand();
	present = OidIsValid(get_extension_oid("outbox", true)) &&
		OidIsValid(outbox_catalog_table("control"));
	CommitTransactionCommand();
	if (present)
		return;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	worker->slot->absent = true;
	LWLockRelease(outbox_shared->lock);
	proc_exit(0);
}

/*
 * One publisher per database: a lock of the session, held until this process ends.
 * Its key is in the space of advisory locks, but with a fourth field that
 * no SQL function uses.
 */
static void
require_publisher_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PUBLISHER_LOCK_KEY1, PUBLISHER_LOCK_KEY2, 3);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		outbox_report_error(worker->slot, "another worker is publishing in this database");
		proc_exit(1);
	}
}

static void
leave(void)
{
	proc_exit(0);
}

/* ---- steps ---- */

/* Begin a session; false if it can't be had now.  Leaves if the extension is gone. */
static bool
begin_session(bool writes)
{
	if (worker->now < worker->locked_until)
		return false;
	switch (outbox_session_begin(writes))
	{
		case OUTBOX_SESSION_OPEN:
			return true;
		case OUTBOX_SESSION_LOCKED:
			worker->locked_until = TimestampTzPlusMilliseconds(worker->now, LOCKED_RETRY_MS);
			return false;
		case OUTBOX_SESSION_GONE:
			break;
	}
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	worker->slot->absent = true;
	LWLockRelease(outbox_shared->lock);
	leave();
	return false;
}

static void
take_events(void)
{
	OutboxPublisher *publisher = &worker->publisher;
	OutboxBrokerEvent event;
	OutboxTally tally = {0};

	while (outbox_broker_next_event(publisher->broker, &event))
	{
		const char *nonsense;

		if (event.type != OUTBOX_EVENT_ACK && event.type != OUTBOX_EVENT_NACK)
			outbox_report_event(worker->slot, &event, publisher->broker);
		nonsense = outbox_confirm_apply(publisher->batch, &event, &tally);
		if (nonsense)
			outbox_broker_fail(publisher->broker, nonsense);
	}
	outbox_report_counts(worker->slot, publisher->batch->in_flight, &tally);
}

/* Is the broker there to take messages, and are we to give it any? */
static bool
may_publish(void)
{
	OutboxPublisher *publisher = &worker->publisher;

	return !worker->leaving && !worker->control.paused && !worker->control.foreign &&
		outbox_broker_state(publisher->broker) == OUTBOX_BROKER_READY &&
		!outbox_broker_blocked(publisher->broker) &&
		outbox_publish_gate_open(publisher);
}

static void
take_deferred(void *arg, const OutboxMessage *message, bool in_queue)
{
	outbox_publish_deferred(arg, message, in_queue);
}

/* Is there anything that publish() could do now? */
static bool
can_publish(void)
{
	return may_publish() && worker->now >= worker->locked_until &&
		outbox_publish_has_room(&worker->publisher) &&
		(worker->hungry || worker->next_due <= worker->now ||
		 outbox_publish_has_unsent(&worker->publisher));
}

static void
publish(void)
{
	OutboxPublisher *publisher = &worker->publisher;
	uint64		first = publisher->batch->tail;

	if (!can_publish() || !begin_session(false))
		return;

	outbox_publish_unsent(publisher);
	if (publisher->batch->resend == publisher->batch->tail)
	{
		if (worker->next_due <= worker->now)
			worker->next_due = outbox_deferred_pick(worker->now,
													outbox_batch_limit(publisher->batch) / 4 + 1,
													publisher->batch->from_deferred,
													take_deferred, publisher);
		if (worker->hungry)
			worker->hungry = outbox_publish_fill(publisher, worker->now) > 0 ||
				!outbox_cursor_at_end(publisher->cursor);
	}
	outbox_publish_shut_gate(publisher, first);
	outbox_session_commit();
}

static void
record_progress(void)
{
	if (!outbox_progress_is_due(&worker->recorder))
		return;
	if (!worker->leaving &&
		worker->now < TimestampTzPlusMilliseconds(worker->recorder.recorded_at,
												  OUTBOX_PROGRESS_INTERVAL_MS))
		return;
	if (!begin_session(true))
		return;
	if (outbox_progress_record(&worker->recorder, worker->now))
	{
		worker->publisher.check_queues = outbox_deferred_has_queues();
		worker->next_due = worker->now;
	}
	outbox_session_commit();
	worker->emptying_due = true;
}

static void
keep_segments(void)
{
	int			open_segment;

	if (!worker->emptying_due || worker->now < worker->next_upkeep || !begin_session(false))
		return;
	open_segment = outbox_segment_rotate(worker->open_segment);
	outbox_session_commit();
	worker->open_segment = open_segment;
	pg_atomic_write_u32(&worker->slot->open_segment, open_segment);

	outbox_segment_empty_settled(open_segment);
	outbox_segment_empty_table(outbox_progress_spare_table(&worker->recorder));
	worker->emptying_due = false;
	worker->next_upkeep = TimestampTzPlusMilliseconds(worker->now, OUTBOX_SEGMENT_INTERVAL_MS);
}

static void
read_control(void)
{
	uint32		changed = pg_atomic_read_u32(&worker->slot->control_changed);
	bool		was_foreign;

	if (!begin_session(true))
		return;
	was_foreign = worker->control.foreign;
	worker->control = outbox_control_read();
	if (worker->control.foreign)
	{
		outbox_control_adopt_if_empty();
		worker->control = outbox_control_read();
	}
	if (worker->control.foreign && !was_foreign)
		outbox_report_error(worker->slot,
							"this database is a copy whose messages belong to the original; call outbox.adopt()");
	/* adopt() moved the recorded position: begin anew from there. */
	if (was_foreign && !worker->control.foreign)
		worker->leaving = true;
	/* Somebody may have deleted the message that others wait behind. */
	if (changed != worker->control_seen)
		outbox_deferred_promote_all();
	outbox_session_commit();
	worker->control_seen = changed;
	worker->next_due = worker->now;
}

/* Connect where the settings say, or not at all. */
static void
configure(void)
{
	OutboxBroker *broker = worker->publisher.broker;

	if (outbox_enabled)
		outbox_broker_configure(broker);
	else
	{
		outbox_broker_close(broker);
		outbox_batch_unsend(worker->publisher.batch);
	}
}

/* What others want of this process. */
static void
heed_others(void)
{
	CHECK_FOR_INTERRUPTS();
	if (worker->slot->quiesced_by != 0 || pg_atomic_read_u32(&worker->slot->reload) != 0 ||
		ShutdownRequestPending)
		worker->leaving = true;
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		configure();
	}
	if (worker->now >= worker->next_poll ||
		worker->control_seen != pg_atomic_read_u32(&worker->slot->control_changed))
	{
		worker->next_poll = TimestampTzPlusMilliseconds(worker->now, outbox_poll_interval);
		worker->hungry = true;
		read_control();
	}
}

static void
report_state(void)
{
	OutboxBroker *broker = worker->publisher.broker;
	OutboxWorkerState state;

	if (outbox_broker_state(broker) == OUTBOX_BROKER_IDLE)
		state = OUTBOX_WORKER_DISABLED;
	else if (worker->control.paused || worker->control.foreign)
		state = OUTBOX_WORKER_PAUSED;
	else if (outbox_broker_state(broker) != OUTBOX_BROKER_READY)
		state = OUTBOX_WORKER_CONNECTING;
	else if (outbox_broker_blocked(broker))
		state = OUTBOX_WORKER_BLOCKED;
	else if (worker->publisher.batch->gated != OUTBOX_NO_ENTRY)
		state = OUTBOX_WORKER_WAITING_FOR_STANDBY;
	else if (worker->publisher.batch->in_flight > 0)
		state = OUTBOX_WORKER_PUBLISHING;
	else
		state = OUTBOX_WORKER_IDLE;
	outbox_report_state(worker->slot, state, broker);
}

/* ---- the wait ---- */

/* The latest moment by which one of the steps has something to do. */
static TimestampTz
next_deadline(void)
{
	TimestampTz deadline = worker->next_poll;

#define NO_LATER_THAN(moment) (deadline = Min(deadline, (moment)))
	NO_LATER_THAN(outbox_broker_deadline(worker->publisher.broker));
	if (outbox_progress_is_due(&worker->recorder))
		NO_LATER_THAN(TimestampTzPlusMilliseconds(worker->recorder.recorded_at,
												  OUTBOX_PROGRESS_INTERVAL_MS));
	if (worker->emptying_due)
		NO_LATER_THAN(worker->next_upkeep);
	if (worker->publisher.batch->gated != OUTBOX_NO_ENTRY)
		NO_LATER_THAN(TimestampTzPlusMilliseconds(worker->now, GATE_POLL_MS));
	if (may_publish())
		NO_LATER_THAN(worker->next_due);
#undef NO_LATER_THAN
	/* While our tables are locked there is nothing to be done sooner. */
	if (worker->locked_until > worker->now)
		deadline = Min(Max(deadline, worker->locked_until),
					   outbox_broker_deadline(worker->publisher.broker));
	return deadline;
}

/* A wait event set cannot forget a socket: make a new one for each. */
static void
prepare_wait_set(void)
{
	OutboxBroker *broker = worker->publisher.broker;
	uint32		wanted = outbox_broker_wanted(broker);
	uint32		generation = outbox_broker_generation(broker);
	pgsocket	sock = outbox_broker_socket(broker);
	bool		has_socket = sock != PGINVALID_SOCKET && wanted != 0;

	if (worker->wait_set && generation == worker->wait_generation &&
		has_socket == (worker->wait_socket_pos >= 0))
	{
		if (has_socket && wanted != worker->wait_wanted)
			ModifyWaitEvent(worker->wait_set, worker->wait_socket_pos, wanted, NULL);
		worker->wait_wanted = wanted;
		return;
	}
	if (worker->wait_set)
		FreeWaitEventSet(worker->wait_set);
	worker->wait_set = outbox_create_wait_event_set(3);
	AddWaitEventToSet(worker->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(worker->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	worker->wait_socket_pos = !has_socket ? -1 :
		AddWaitEventToSet(worker->wait_set, wanted, sock, NULL, NULL);
	worker->wait_generation = generation;
	worker->wait_wanted = wanted;
}

/* The one place where this process sleeps. */
static void
wait_for_something(TimestampTz deadline)
{
	static uint32 wait_event = 0;
	WaitEvent	events[3];
	long		timeout;
	int			count;

	if (wait_event == 0)
		wait_event = outbox_wait_event("OutboxWorkerMain");
	prepare_wait_set();
	timeout = can_publish() ? 0 :
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	count = WaitEventSetWait(worker->wait_set, timeout, events, lengthof(events), wait_event);
	for (int i = 0; i < count; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			worker->hungry = true;
		}
	}
	worker->now = GetCurrentTimestamp();
}

/* ---- the loop ---- */

static void
turn(void)
{
	OutboxBroker *broker = worker->publisher.broker;

	heed_others();
	outbox_broker_turn(broker, worker->now);	/* receive */
	take_events();
	publish();
	outbox_broker_turn(broker, worker->now);	/* send */
	take_events();
	record_progress();
	keep_segments();
	report_state();
}

/* Told to leave: what the broker has confirmed shall not be sent again. */
static void
say_farewell(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAREWELL_MS);

	worker->locked_until = 0;
	while (worker->publisher.batch->in_flight > 0 && GetCurrentTimestamp() < deadline)
	{
		outbox_broker_turn(worker->publisher.broker, worker->now);
		take_events();
		if (worker->publisher.batch->in_flight > 0)
			wait_for_something(deadline);
	}
	record_progress();
}

/* Find out where the last worker ended. */
static void
begin_where_recorded(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "outbox worker",
												  ALLOCSET_DEFAULT_SIZES);
	OutboxPublisher *publisher = &worker->publisher;
	OutboxProgress progress;
	char		name[NAMEDATALEN + 32];

	while (worker->now = GetCurrentTimestamp(), !begin_session(true))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCKED_RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending || worker->slot->quiesced_by != 0)
			leave();
	}
	outbox_progress_load(&progress);
	publisher->cursor = outbox_cursor_create(context, &progress, OUTBOX_ALL_SEGMENTS);
	publisher->batch = outbox_batch_create(context);
	publisher->scratch = AllocSetContextCreate(context, "outbox message", ALLOCSET_DEFAULT_SIZES);
	publisher->check_queues = outbox_deferred_has_queues();
	outbox_deferred_promote_all();
	worker->recorder.batch = publisher->batch;
	worker->recorder.cursor = publisher->cursor;
	outbox_progress_start(&worker->recorder, &progress);
	worker->open_segment = outbox_segment_find_open();
	pg_atomic_write_u32(&worker->slot->open_segment, worker->open_segment);
	snprintf(name, sizeof(name), "outbox/%s", get_database_name(MyDatabaseId));
	outbox_session_commit();

	publisher->broker = outbox_broker_create(context, name);
	configure();
	worker->emptying_due = true;
}

static void
run(void)
{
	attach();
	require_extension();
	require_publisher_lock();
	outbox_session_init();
	begin_where_recorded();

	while (!worker->leaving)
	{
		turn();
		if (!worker->leaving)
			wait_for_something(next_deadline());
	}
	say_farewell();
	leave();
}

void
outbox_worker_main(Datum main_arg)
{
	Oid			dboid = DatumGetObjectId(main_arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	worker = MemoryContextAllocZero(TopMemoryContext, sizeof(Worker));
	worker->started_at = GetCurrentTimestamp();

	PG_TRY();
	{
		run();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		if (worker->slot)
			outbox_report_error(worker->slot, error->message);
		EmitErrorReport();
		proc_exit(1);
	}
	PG_END_TRY();
}
