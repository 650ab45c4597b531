/*
 * worker.c
 *		The process that publishes the messages of one database, and the only
 *		file that knows the order of the steps:
 *
 *		3 cursor    open a window: committed since last time   (cursor.c, horizon.c)
 *		4 durable   flush WAL, wait for standbys               (durable.c)
 *		5 publish   encode into the broker's output            (publish.c)
 *		6 confirm   what the broker answers settles messages   (confirm.c)
 *		7 progress  record what is settled, set aside the rest (record.c)
 *		8 segment   rotate, empty what is settled              (segment.c)
 *
 *		Beside them, destinations that do not work are tried  (breaker.c, probe.c).
 *
 *		Each turn of the loop takes every step as far as it goes without
 *		waiting, and then sleeps in the one place where this process sleeps:
 *		outbox_wait(). No transaction, snapshot or lock is held there, but for
 *		the publisher lock, which ensures that there is one publisher per
 *		database whatever the launcher believes.
 *
 *		An error ends the process: it is shown in outbox.status, and the
 *		launcher starts another worker, which begins at the progress that was
 *		recorded. Nothing in memory is worth saving that a crash could not
 *		destroy as well.
 *
 *		SIGTERM (shutdown, pg_terminate_backend) is answered in order: collect
 *		the confirms that arrive within FAREWELL_MS, record them, leave.
 */
#include "pgcompat.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "amqp_codec.h"
#include "attach.h"
#include "confirm.h"
#include "control.h"
#include "deferred.h"
#include "events.h"
#include "faultpoint.h"
#include "probe.h"
#include "progress.h"
#include "publish.h"
#include "record.h"
#include "report.h"
#include "segment.h"
#include "session.h"
#include "settings.h"
#include "shmem.h"
#include "wait.h"
#include "worker.h"

#define FAREWELL_MS			150		/* wait so long for confirms when told to leave */
#define LAST_RECORDS_MS		1000	/* and record for so long what has been settled */
#define LOCKED_RETRY_MS		100		/* somebody has locked our tables */
#define LOCKED_TOLD_MS		1000	/* and has done so for long */
#define LOCKED_TEXT			"somebody has locked the tables of the extension, or waits to"
/* Rows that are gone lie in the way while somebody holds a snapshot: */
#define LOOK_SHARE			20		/* pass over them for a twentieth of the time */
#define LOOK_MAX_MS			60000	/* but once in so long */
#define GATE_POLL_MAX_MS	50		/* look at the standbys again, after 1 ms at first */

typedef struct Worker
{
	OutboxSlot *slot;
	OutboxPublisher publisher;
	OutboxRecorder recorder;
	OutboxProbe *probe;
	OutboxControl control;
	uint32		control_seen;
	int			open_segment;

	bool		hungry;			/* there may be something to read */
	bool		leaving;
	int			first_source;	/* of messages, see sources[] */
	bool		emptying_due;	/* progress was recorded since the last attempt */
	TimestampTz now;
	TimestampTz next_poll;
	TimestampTz next_due;		/* of deferred */
	OutboxDuePlace due_after;	/* what was due up to here is taken up */
	TimestampTz next_review;	/* look at all that is due, not before */
	TimestampTz next_check;		/* see whether there are queues still, not before */
	char		promote_from[OUTBOX_KEY_SIZE];	/* ordering key */
	TimestampTz next_upkeep;
	TimestampTz locked_until;	/* our tables were locked: not before */
	TimestampTz locked_since;	/* 0: they are not */
	TimestampTz next_gate;		/* the gate is shut: look again */
	int			gate_delay_ms;
} Worker;

static Worker *worker;

static void
leave(void)
{
	if (worker->publisher.connections)
		outbox_connections_close(worker->publisher.connections);
	if (worker->probe)
		outbox_broker_close(worker->probe->broker);
	proc_exit(0);
}

/* ---- steps ---- */

/* Begin a session; false if it can't be had now.  Leaves if the extension is gone. */
static bool
begin_session(void)
{
	if (worker->now < worker->locked_until)
		return false;
	switch (outbox_session_begin())
	{
		case OUTBOX_SESSION_OPEN:
			worker->locked_since = 0;
			return true;
		case OUTBOX_SESSION_LOCKED:
			if (worker->locked_since == 0)
				worker->locked_since = worker->now;
			if (worker->now - worker->locked_since > LOCKED_TOLD_MS * INT64CONST(1000))
				outbox_report_error(worker->slot, LOCKED_TEXT);
			worker->locked_until = TimestampTzPlusMilliseconds(worker->now, LOCKED_RETRY_MS);
			return false;
		case OUTBOX_SESSION_GONE:
			break;
	}
	outbox_require_extension();
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("outbox.%s is missing, or is another one than before", outbox_session_gone_name()),
			 errhint("The worker starts anew. If this does not help, undo what was done to it, or reinstall the extension.")));
	return false;
}

static void
take_events(void)
{
	outbox_events_take(worker->publisher.connections, worker->slot, worker->now);
}

/* Is the broker there to take messages, and are we to give it any? */
static bool
may_publish(void)
{
	OutboxPublisher *publisher = &worker->publisher;

	return !worker->leaving && !worker->control.paused && !worker->control.foreign &&
		outbox_connections_state(publisher->connections) == OUTBOX_BROKER_READY &&
		!outbox_connections_blocked(publisher->connections) &&
		publisher->batch->gated == OUTBOX_NO_ENTRY &&
		outbox_publish_has_room(publisher);
}

/* May it read on, once what was read before is sent? */
static bool
may_read_on(void)
{
	return may_publish() && outbox_batch_has_space(worker->publisher.batch);
}

/* May there be something new to read? */
static bool
is_hungry(void)
{
	return worker->hungry || pg_atomic_read_u32(&worker->slot->work) != 0;
}

/* The same, and are we to? */
static bool
may_fill(void)
{
	return is_hungry() && worker->publisher.breakers->hold_until <= worker->now;
}

/* Is there anything that publish() could do now? */
static bool
can_publish(void)
{
	if (worker->now < worker->locked_until)
		return false;
	return (may_publish() && outbox_publish_has_unsent(&worker->publisher)) ||
		(may_read_on() && (may_fill() || worker->next_due <= worker->now ||
						   outbox_breakers_drain_due(worker->publisher.breakers)));
}

/* The standbys may have caught up, whatever the connection is doing. */
static void
watch_gate(void)
{
	if (outbox_publish_gate_open(&worker->publisher))
		worker->gate_delay_ms = 0;
	else
	{
		worker->gate_delay_ms = Min(Max(1, worker->gate_delay_ms * 2), GATE_POLL_MAX_MS);
		worker->next_gate = TimestampTzPlusMilliseconds(worker->now, worker->gate_delay_ms);
	}
}

/* What waits for destinations that work again. */
static void
take_draining(void)
{
	if (outbox_breakers_drain_due(worker->publisher.breakers))
		outbox_publish_drain(&worker->publisher, may_fill(), worker->recorder.leftover == NIL);
}

/* When to look again at what took from `start` until now. */
static TimestampTz
next_look(TimestampTz start)
{
	TimestampTz now = GetCurrentTimestamp();

	return now + Min(LOOK_SHARE * (now - start), LOOK_MAX_MS * INT64CONST(1000));
}

/* What is due in deferred. */
static void
take_due(void)
{
	OutboxPublisher *publisher = &worker->publisher;
	bool		is_review = worker->due_after.due_at == DT_NOBEGIN;
	TimestampTz start;

	if (worker->next_due > worker->now)
		return;
	start = GetCurrentTimestamp();
	worker->next_due = outbox_pick_due(worker->now, &worker->due_after,
									   publisher->batch->from_deferred,
									   outbox_publish_deferred, publisher);
	if (is_review)
		worker->next_review = next_look(start);
}

/* What has committed. */
static void
take_new(void)
{
	OutboxPublisher *publisher = &worker->publisher;
	bool		is_new;

	if (!may_fill())
		return;
	/* The rest of an old window says nothing about what has committed since. */
	is_new = outbox_cursor_at_end(publisher->cursor);
	worker->hungry = outbox_publish_fill(publisher) > 0 || !is_new ||
		!outbox_cursor_at_end(publisher->cursor);
}

/* Of large messages, any of them may take all the room: each goes first in turn. */
static void (*const sources[]) (void) = {take_due, take_new, take_draining};

static void
read_on(void)
{
	uint64		tail = worker->publisher.batch->tail;

	for (int i = 0; i < lengthof(sources); i++)
		sources[(worker->first_source + i) % lengthof(sources)] ();
	if (worker->publisher.batch->tail > tail)
		worker->first_source = (worker->first_source + 1) % lengthof(sources);
}

static void
publish(void)
{
	OutboxPublisher *publisher = &worker->publisher;
	uint64		first = publisher->batch->tail;

	if (!can_publish())
		return;
	/* Before the snapshot: see outbox_shmem_announce_work(). */
	if (pg_atomic_exchange_u32(&worker->slot->work, 0) != 0)
		worker->hungry = true;
	if (!begin_session())
		return;

	outbox_publish_unsent(publisher);
	if (!outbox_publish_has_unsent(publisher))
		read_on();
	outbox_publish_shut_gate(publisher, first);
	outbox_session_commit();
}

/* May the connection of the probe be there? */
static bool
may_probe(void)
{
	/* While the publisher opens another channel, it is. */
	return !worker->leaving && !worker->control.paused && !worker->control.foreign &&
		outbox_connections_state(worker->publisher.connections) >= OUTBOX_BROKER_CHANNEL;
}

/* Try destinations that do not work, on their own connection. */
static void
probe(void)
{
	OutboxBroker *first = outbox_connections_first(worker->publisher.connections);
	OutboxTally tally = {0};

	outbox_probe_turn(worker->probe, worker->now, may_probe(), first, &tally);
	if (outbox_probe_next(worker->probe) <= worker->now && begin_session())
	{
		outbox_probe_send(worker->probe, worker->now);
		outbox_session_commit();
		outbox_probe_turn(worker->probe, worker->now, may_probe(), first, &tally);
	}
	outbox_report_counts(worker->slot, worker->publisher.batch->in_flight, &tally);
}

/* When to record next; a queue that is about to be empty waits for it. */
static TimestampTz
record_due(void)
{
	if (worker->publisher.breakers->hold_until > worker->now &&
		outbox_batch_head_settled(worker->publisher.batch))
		return worker->now;
	return outbox_record_due(&worker->recorder);
}

/* Are there queues of ordering keys still? */
static void
look_for_queues(void)
{
	TimestampTz start;

	if (!worker->publisher.check_queues || worker->next_check > worker->now)
		return;
	start = GetCurrentTimestamp();
	worker->publisher.check_queues = outbox_deferred_has_queues();
	worker->next_check = next_look(start);
}

static void
record_progress(void)
{
	TimestampTz due = record_due();

	if (due == DT_NOEND || (due > worker->now && !worker->leaving) || !begin_session())
		return;
	if (outbox_record(&worker->recorder, worker->now))
	{
		outbox_publish_queues_changed(&worker->publisher);
		worker->next_due = worker->now;
	}
	look_for_queues();
	outbox_session_commit();
	OUTBOX_FAULTPOINT("record-committed");
	worker->publisher.breakers->drain_due = true;
	worker->emptying_due = true;
}

/* May there be something to empty?  In a copy adopt() may change tables under us. */
static bool
may_empty(void)
{
	return worker->emptying_due && !worker->control.foreign;
}

static void
keep_segments(void)
{
	int			open_segment;

	if (!may_empty() || worker->now < worker->next_upkeep || !begin_session())
		return;
	open_segment = outbox_segment_rotate(worker->open_segment);
	outbox_session_commit();
	worker->open_segment = open_segment;
	pg_atomic_write_u32(&worker->slot->open_segment, open_segment);
	OUTBOX_FAULTPOINT("segment-hint-written");

	outbox_segment_empty_settled(open_segment);
	outbox_segment_empty_table(outbox_progress_spare_table(&worker->recorder.position));
	worker->emptying_due = false;
	worker->next_upkeep = TimestampTzPlusMilliseconds(worker->now, OUTBOX_SEGMENT_INTERVAL_MS);
}

/* Within a session. */
static void
read_control(void)
{
	uint32		changed = pg_atomic_read_u32(&worker->slot->control_changed);
	bool		was_foreign = worker->control.foreign;

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
	look_for_queues();
	/* Somebody may have locked or deleted the message that others wait behind. */
	if (worker->publisher.check_queues)
		outbox_deferred_promote_some(worker->promote_from,
									 worker->publisher.batch->several_per_key);
	outbox_breakers_load(worker->publisher.breakers);
	/* Somebody may have made something due. */
	if (changed != worker->control_seen || worker->next_review <= worker->now)
		worker->due_after = OUTBOX_DUE_BEGIN;
	worker->next_due = worker->now;
	worker->control_seen = changed;
}

static bool
is_control_changed(void)
{
	return worker->control_seen != pg_atomic_read_u32(&worker->slot->control_changed);
}

static void
poll_control(void)
{
	/* Half an interval is early, but a turn that is made anyway spares one of its own. */
	if (worker->now < TimestampTzPlusMilliseconds(worker->next_poll, -outbox_poll_interval / 2) &&
		!is_control_changed())
		return;
	/* If our tables are locked, ask again soon, not at the next poll. */
	if (!begin_session())
		return;
	read_control();
	outbox_session_commit();
	worker->next_poll = TimestampTzPlusMilliseconds(worker->now, outbox_poll_interval);
	worker->hungry = true;
	worker->emptying_due = true;
}

static void collect_confirms(void);

/* Connect where the settings say, or not at all. */
static void
configure(void)
{
	OutboxConnections *connections = worker->publisher.connections;

	if (outbox_connections_state(connections) == OUTBOX_BROKER_READY)
		collect_confirms();
	if (outbox_broker_state(worker->probe->broker) != OUTBOX_BROKER_IDLE)
		outbox_broker_configure(worker->probe->broker);
	outbox_connections_configure(connections);
}

/* Is this process to end, in order? */
static bool
is_told_to_leave(void)
{
	return worker->slot->quiesced_by != 0 || pg_atomic_read_u32(&worker->slot->reload) != 0 ||
		ShutdownRequestPending;
}

/*
 * Do others want something?  Whoever does sets the latch; but what waits within a turn,
 * for a lock, a buffer, the last confirms of a connection, resets it. So this is looked
 * at before the worker sleeps.
 */
static bool
is_called(void)
{
	return InterruptPending || ConfigReloadPending || is_told_to_leave() ||
		(is_control_changed() && worker->locked_until <= worker->now);
}

/* What others want of this process. */
static void
heed_others(void)
{
	CHECK_FOR_INTERRUPTS();
	if (is_told_to_leave())
		worker->leaving = true;
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		configure();
	}
	poll_control();
}

static void
report_state(void)
{
	OutboxConnections *connections = worker->publisher.connections;
	OutboxWorkerState state;

	if (outbox_connections_state(connections) == OUTBOX_BROKER_IDLE)
		state = OUTBOX_WORKER_DISABLED;
	else if (worker->control.paused || worker->control.foreign)
		state = OUTBOX_WORKER_PAUSED;
	else if (outbox_connections_state(connections) != OUTBOX_BROKER_READY)
		state = OUTBOX_WORKER_CONNECTING;
	else if (outbox_connections_blocked(connections))
		state = OUTBOX_WORKER_BLOCKED;
	else if (worker->publisher.batch->gated != OUTBOX_NO_ENTRY)
		state = OUTBOX_WORKER_WAITING_FOR_STANDBY;
	else if (worker->publisher.batch->in_flight > 0)
		state = OUTBOX_WORKER_PUBLISHING;
	else
		state = OUTBOX_WORKER_IDLE;
	outbox_report_state(worker->slot, state, worker->publisher.breakers->open, connections);
}

/* ---- the wait ---- */

/* The latest moment by which one of the steps has something to do. */
static TimestampTz
next_deadline(void)
{
	TimestampTz deadline = worker->next_poll;

#define NO_LATER_THAN(moment) (deadline = Min(deadline, (moment)))
	NO_LATER_THAN(record_due());
	NO_LATER_THAN(outbox_probe_next(worker->probe));
	if (may_empty())
		NO_LATER_THAN(worker->next_upkeep);
	if (may_read_on())
	{
		NO_LATER_THAN(worker->next_due);
		if (is_hungry())
			NO_LATER_THAN(worker->publisher.breakers->hold_until);
	}
	/* While our tables are locked, none of that can be done; then all of it. */
	if (worker->locked_until > worker->now)
		deadline = worker->locked_until;
	NO_LATER_THAN(outbox_connections_deadline(worker->publisher.connections));
	NO_LATER_THAN(outbox_probe_deadline(worker->probe));
	if (worker->publisher.batch->gated != OUTBOX_NO_ENTRY)
		NO_LATER_THAN(worker->next_gate);
#undef NO_LATER_THAN
	return deadline;
}

/* The clock was set back: what is still to come moves along. */
static void
follow_clock(TimestampTz back)
{
	worker->next_poll -= back;
	worker->next_upkeep -= back;
	worker->locked_until -= back;
	worker->locked_since -= worker->locked_since > 0 ? back : 0;
	worker->next_gate -= back;
	worker->next_review -= back;
	worker->next_check -= back;
	worker->recorder.recorded_at -= back;
	worker->recorder.leftover_due -= back;
	outbox_connections_follow_clock(worker->publisher.connections, back);
	outbox_batch_follow_clock(worker->publisher.batch, back);
	outbox_probe_follow_clock(worker->probe, back);
	worker->next_due = 0;		/* of the database's time, not ours */
	worker->due_after = OUTBOX_DUE_BEGIN;
}

static void
sleep_until(TimestampTz deadline)
{
	const OutboxConnections *connections = worker->publisher.connections;
	const OutboxBroker *brokers[OUTBOX_WAIT_MAX];
	int			count = 0;

	for (int i = 0; i < connections->count; i++)
		brokers[count++] = connections->list[i].broker;
	brokers[count++] = worker->probe->broker;
	outbox_wait(brokers, count, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline));
}

/* Look at the clock; returns by how much it was set back, mostly 0. */
static TimestampTz
take_time(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz back = Max(0, worker->now - now);

	if (back > 0)
		follow_clock(back);
	worker->now = now;
	return back;
}

/* Sleep, unless there is something to do, until `deadline` or an event. */
static void
wait_for_something(TimestampTz deadline)
{
	sleep_until(can_publish() || is_called() ? 0 : deadline);
	(void) take_time();
}

/* ---- the loop ---- */

static void
turn(void)
{
	OutboxConnections *connections = worker->publisher.connections;

	worker->publisher.now = worker->now;
	heed_others();
	outbox_connections_turn(connections, worker->now);	/* receive */
	take_events();
	watch_gate();
	publish();
	outbox_connections_turn(connections, worker->now);	/* send */
	take_events();
	probe();
	record_progress();
	keep_segments();
	report_state();
}

/* The connection is to end: what the broker has confirmed shall not be sent again. */
static void
collect_confirms(void)
{
	TimestampTz deadline;

	(void) take_time();
	deadline = TimestampTzPlusMilliseconds(worker->now, FAREWELL_MS);
	while (worker->publisher.batch->in_flight > 0 && worker->now < deadline)
	{
		outbox_connections_turn(worker->publisher.connections, worker->now);
		take_events();
		probe();
		if (worker->publisher.batch->in_flight > 0)
			sleep_until(deadline);
		deadline -= take_time();
	}
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
	char		text[NAMEDATALEN + 16];

	while (worker->now = GetCurrentTimestamp(), !begin_session())
	{
		outbox_report_error(worker->slot, LOCKED_TEXT);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCKED_RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (is_told_to_leave())
			leave();
		worker->locked_until = 0;	/* the clock may have been set back */
	}
	outbox_progress_load(&progress);
	publisher->cursor = outbox_cursor_create(context, &progress, OUTBOX_ALL_SEGMENTS);
	publisher->batch = outbox_batch_create(context);
	publisher->breakers = outbox_breakers_create(context);
	publisher->scratch = AllocSetContextCreate(context, "outbox message", ALLOCSET_DEFAULT_SIZES);
	outbox_publish_queues_changed(publisher);	/* before us */
	/* Before anything can be published: it may be paused, or a copy. */
	read_control();
	worker->recorder.batch = publisher->batch;
	worker->recorder.cursor = publisher->cursor;
	worker->recorder.breakers = publisher->breakers;
	worker->recorder.position.number = progress.number;
	worker->recorder.position.table = progress.table;
	worker->open_segment = outbox_segment_find_open();
	pg_atomic_write_u32(&worker->slot->open_segment, worker->open_segment);
	/* The broker takes UTF-8 only, and a name may be in any encoding. */
	snprintf(text, sizeof(text), "outbox/%s", get_database_name(MyDatabaseId));
	outbox_amqp_printable(name, sizeof(name), text, strlen(text));
	outbox_session_commit();

	publisher->connections = outbox_connections_create(context, name, publisher->batch);
	strlcat(name, " probe", sizeof(name));
	worker->probe = outbox_probe_create(context, name, publisher->breakers, &worker->recorder);
	configure();
	worker->hungry = true;
	worker->next_poll = TimestampTzPlusMilliseconds(worker->now, outbox_poll_interval);
	worker->emptying_due = true;
}

/* What is settled is recorded, in as many transactions as it takes. */
static void
record_everything(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(worker->now, LAST_RECORDS_MS);

	do
	{
		record_progress();
		if (worker->locked_until > worker->now)
			sleep_until(worker->locked_until);
		deadline -= take_time();
	} while (outbox_batch_head_settled(worker->publisher.batch) && worker->now < deadline);
}

static void
run(void)
{
	outbox_require_extension();
	outbox_require_publisher_lock();
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	outbox_session_init();
	begin_where_recorded();

	while (!worker->leaving)
	{
		turn();
		if (!worker->leaving)
			wait_for_something(next_deadline());
	}
	collect_confirms();
	outbox_batch_end_waiting(worker->publisher.batch);
	worker->recorder.leftover_due = worker->now;
	record_everything();
	leave();
}

void
outbox_worker_main(Datum main_arg)
{
	Oid			dboid = DatumGetObjectId(main_arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);		/* until there is something to end in order */
	BackgroundWorkerUnblockSignals();
	worker = MemoryContextAllocZero(TopMemoryContext, sizeof(Worker));
	worker->slot = outbox_attach(dboid);
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	OUTBOX_FAULTPOINT("worker-connected");

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
		LWLockReleaseAll();		/* it may have come while we held one */
		outbox_report_error(worker->slot, error->message);
		EmitErrorReport();
		proc_exit(1);
	}
	PG_END_TRY();
}
