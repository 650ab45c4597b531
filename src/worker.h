/*
 * worker.h
 *		Entry point of the process that publishes the messages of one database.
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

/* postmaster: entry point of a worker process; main_arg is the database's OID */
extern PGDLLEXPORT void outbox_worker_main(Datum main_arg);

#endif							/* OUTBOX_WORKER_H */
