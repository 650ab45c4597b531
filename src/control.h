/*
 * control.h
 *		What an operator asked of the worker.
 */
#ifndef OUTBOX_CONTROL_H
#define OUTBOX_CONTROL_H

typedef struct OutboxControl
{
	bool		paused;
	bool		foreign;		/* this database is a copy of another one */
} OutboxControl;

/* worker, within a session */
extern OutboxControl outbox_control_read(void);
extern void outbox_control_adopt_if_empty(void);

#endif							/* OUTBOX_CONTROL_H */
