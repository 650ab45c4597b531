/*
 * segment.h
 *		The ring of segments.
 */
#ifndef OUTBOX_SEGMENT_H
#define OUTBOX_SEGMENT_H

#include "datatype/timestamp.h"

/* Attempts to empty a table are so far apart: each one may cost an xid. */
#define OUTBOX_SEGMENT_INTERVAL_MS 2000

/*
 * In any transaction: is every row of a segment, or of all
 * (OUTBOX_ALL_SEGMENTS), settled by progress as it is stored?
 */
extern bool outbox_segment_is_settled(int segment);

/* worker, within a session: the segment written to last */
extern int	outbox_segment_find_open(void);

/* worker, within a session: the segment to write to from now on */
extern int	outbox_segment_rotate(int open_segment);

/* worker, in no transaction: empty what can be emptied; a table by its name in our schema */
extern void outbox_segment_empty_settled(int open_segment);
extern void outbox_segment_empty_table(const char *name);

#endif							/* OUTBOX_SEGMENT_H */
