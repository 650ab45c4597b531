/*
 * shmem.h
 *		What the processes share: one slot per database that has the extension,
 *		guarded by one lock.  Only plain data, never a pointer or a descriptor:
 *		a slot outlives the process that filled it.
 */
#ifndef OUTBOX_SHMEM_H
#define OUTBOX_SHMEM_H

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/lwlock.h"

#define OUTBOX_ERROR_LEN 512
#define OUTBOX_BROKER_LEN 300

typedef enum OutboxWorkerState
{
	OUTBOX_WORKER_STOPPED,		/* no process */
	OUTBOX_WORKER_STARTING,		/* attached, not yet owner of the publisher lock */
	OUTBOX_WORKER_DISABLED,		/* outbox.enabled is off, or outbox.uri is empty */
	OUTBOX_WORKER_PAUSED,		/* outbox.pause(), or a clone not yet adopted */
	OUTBOX_WORKER_CONNECTING,	/* no connection to the broker, trying */
	OUTBOX_WORKER_BLOCKED,		/* the broker asked to stop publishing */
	OUTBOX_WORKER_WAITING_FOR_STANDBY,	/* durability gate is shut */
	OUTBOX_WORKER_PUBLISHING,	/* messages are in flight */
	OUTBOX_WORKER_IDLE			/* connected, nothing to do */
} OutboxWorkerState;

typedef struct OutboxSlot
{
	/* under lock */
	Oid			dboid;			/* InvalidOid: slot is free */
	pid_t		pid;			/* worker that holds it, 0: none */
	int			procno;			/* its index in ProcGlobal->allProcs */
	pid_t		quiesced_by;	/* backend whose DDL needs the database empty */
	bool		announced;		/* CREATE EXTENSION committed; worker has not looked yet */
	bool		looked;			/* its worker has found the extension */
	bool		absent;			/* last worker found no extension, or a template */
	bool		is_template;	/* ... a template: it may be one no longer when next looked at */
	int			failures;		/* starts in a row that did not last */
	TimestampTz next_start;		/* not before */
	OutboxWorkerState state;
	TimestampTz connected_since;	/* 0: not connected */
	TimestampTz last_error_at;	/* 0: none */
	char		last_error[OUTBOX_ERROR_LEN];
	char		broker[OUTBOX_BROKER_LEN];

	/* without lock; one writer each */
	pg_atomic_uint32 open_segment;	/* hint for enqueue(): any value is right */
	pg_atomic_uint32 work;		/* something was committed since the worker looked */
	pg_atomic_uint32 control_changed;	/* counts pause(), resume() ... */
	pg_atomic_uint32 reload;	/* outbox.reload(): the worker is to start anew */
	pg_atomic_uint64 in_flight;
	pg_atomic_uint64 confirmed;
	pg_atomic_uint64 returned;
	pg_atomic_uint64 nacked;
	pg_atomic_uint64 reconnects;
} OutboxSlot;

typedef enum OutboxScan
{
	OUTBOX_SCAN_NONE = 0,
	OUTBOX_SCAN_NEW = 1,		/* for those it does not know */
	OUTBOX_SCAN_ALL = 2			/* and those in which it found no extension */
} OutboxScan;

typedef struct OutboxShared
{
	LWLock	   *lock;
	pid_t		launcher_pid;	/* 0: not running */
	int			launcher_procno;
	pg_atomic_uint32 scan_requested;	/* bits of OutboxScan: look for databases */
	int			slot_count;
	OutboxSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} OutboxShared;

/* What outbox.status and pg_stat_activity call a state (inspect.c). */
extern const char *outbox_state_name(OutboxWorkerState state);

/* NULL where the library was not preloaded. */
extern OutboxShared *outbox_shared;

/* postmaster */
extern void outbox_shmem_init(void);

/* any process: the slot of a database, NULL if it has none */
extern OutboxSlot *outbox_shmem_find(Oid dboid);

/* user backend: the segment that enqueue() shall write to */
extern int	outbox_shmem_open_segment(void);

/*
 * user backend, launcher: make sure that a database has a slot; false if all
 * are taken. `announce`: the extension is there now.
 */
extern bool outbox_shmem_claim(Oid dboid, bool announce);

/* user backend: however often its worker has failed, start it at once */
extern void outbox_shmem_forgive(Oid dboid);

/* launcher, utility hook, under lock: make a slot free */
extern void outbox_shmem_clear(OutboxSlot *slot);

/* any process: set a latch, if its owner is there */
extern void outbox_shmem_wake_worker(Oid dboid);
extern void outbox_shmem_announce_work(Oid dboid);	/* a message has committed */
extern void outbox_shmem_wake_launcher(void);
extern void outbox_shmem_request_scan(OutboxScan scan);

#endif							/* OUTBOX_SHMEM_H */
