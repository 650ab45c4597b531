/*
 * wake.h
 *		What a committed transaction owes the background processes.
 */
#ifndef OUTBOX_WAKE_H
#define OUTBOX_WAKE_H

/* postmaster or backend: called once by _PG_init */
extern void outbox_wake_init(void);

/* user backend: at commit of the current transaction ... */
extern void outbox_wake_worker_at_commit(void);	/* ... there is something to publish */
extern void outbox_wake_control_at_commit(void);	/* ... control settings changed */
extern void outbox_wake_launcher_at_commit(void);	/* ... this database has the extension now */
extern void outbox_wake_scan_at_commit(void);	/* ... there is another database */

#endif							/* OUTBOX_WAKE_H */
