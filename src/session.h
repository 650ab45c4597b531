/*
 * session.h
 *		One short transaction of the worker, and the tables it works on.
 */
#ifndef OUTBOX_SESSION_H
#define OUTBOX_SESSION_H

#include "batch.h"

typedef enum OutboxSession
{
	OUTBOX_SESSION_OPEN,		/* transaction, locks and snapshot are there */
	OUTBOX_SESSION_LOCKED,		/* somebody holds a lock on our tables: try later */
	OUTBOX_SESSION_GONE			/* the extension is no longer there: leave */
} OutboxSession;

/* worker: prepare the process (settings, names of tables); within no transaction */
extern void outbox_session_init(void);

/*
 * worker: begin a transaction that reads our tables or writes to them.  Never
 * waits for a lock: a wait would starve the heartbeat.  Unless
 * OUTBOX_SESSION_OPEN is returned, no transaction is left open.
 */
extern OutboxSession outbox_session_begin(void);
extern void outbox_session_commit(void);

/* After OUTBOX_SESSION_GONE: which of our tables and sequences it was. */
extern const char *outbox_session_gone_name(void);

#endif							/* OUTBOX_SESSION_H */
