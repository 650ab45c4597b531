/*
 * dead_letter.h
 *		Messages given up.
 */
#ifndef OUTBOX_DEAD_LETTER_H
#define OUTBOX_DEAD_LETTER_H

#include "deferred.h"

/* Within a session: move messages from a segment to dead_letter. */
extern void outbox_dead_letter_insert(int segment, OutboxAside *aside);

/* Within a session: move messages from deferred to dead_letter. */
extern void outbox_dead_letter_bury(OutboxAside *aside, OutboxTouchedKeys *touched);

#endif							/* OUTBOX_DEAD_LETTER_H */
