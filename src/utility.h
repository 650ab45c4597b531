/*
 * utility.h
 *		Utility commands that concern the workers.
 */
#ifndef OUTBOX_UTILITY_H
#define OUTBOX_UTILITY_H

/* postmaster: called once by _PG_init */
extern void outbox_utility_init(void);

#endif							/* OUTBOX_UTILITY_H */
