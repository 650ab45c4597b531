/*
 * launcher.h
 *		The process that keeps one worker in every database with the extension.
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

/* postmaster: called once by _PG_init */
extern void outbox_launcher_init(void);

/* postmaster: entry point of the launcher process */
extern PGDLLEXPORT void outbox_launcher_main(Datum main_arg);

#endif							/* OUTBOX_LAUNCHER_H */
