/*
 * report.h
 *		What the worker says of itself: slot, pg_stat_activity, server log.
 */
#ifndef OUTBOX_REPORT_H
#define OUTBOX_REPORT_H

#include "breaker.h"
#include "confirm.h"
#include "connections.h"
#include "shmem.h"

/*
 * worker: state in the slot and in pg_stat_activity, and how many destinations
 * are unavailable; cheap if nothing changed
 */
extern void outbox_report_state(OutboxSlot *slot, OutboxWorkerState state, int unavailable,
								const OutboxConnections *connections);

/* worker: an error for outbox.status, of any origin */
extern void outbox_report_error(OutboxSlot *slot, const char *text);

/*
 * worker: a change of one of the connections, once in the log however often it
 * repeats.  What all of them have in common is news when it is true of all.
 */
extern void outbox_report_event(OutboxSlot *slot, const OutboxBrokerEvent *event,
								const OutboxConnections *connections);

/* worker: the same for the connection of probe.c */
extern void outbox_report_probe_event(const OutboxBrokerEvent *event);

/* worker: a destination does not work, or works again; once in the log for each change */
extern void outbox_report_unavailable(OutboxBreaker *breaker, const char *why);
extern void outbox_report_available(OutboxBreaker *breaker);

/* worker: numbers */
extern void outbox_report_counts(OutboxSlot *slot, int in_flight, const OutboxTally *tally);

#endif							/* OUTBOX_REPORT_H */
