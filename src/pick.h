/*
 * pick.h
 *		What to take up next of the messages that were set aside.
 */
#ifndef OUTBOX_PICK_H
#define OUTBOX_PICK_H

#include "batch.h"

/* Where messages go; what a queue of deferred may wait for as a whole. */
typedef struct OutboxDestination
{
	int			scope;			/* OutboxScope */
	char		exchange[OUTBOX_NAME_SIZE];
	char		routing_key[OUTBOX_NAME_SIZE];	/* "" for OUTBOX_SCOPE_EXCHANGE */
} OutboxDestination;

/* All of the following within a session. */

/* What has become of a message that was handed on. */
typedef enum OutboxTaken
{
	OUTBOX_TAKEN,				/* on its way, or in line for it */
	OUTBOX_TAKEN_ASIDE,			/* to be set aside again */
	OUTBOX_TAKEN_NOT			/* no room for it */
} OutboxTaken;

typedef OutboxTaken (*OutboxTake) (void *arg, const OutboxMessage *message, bool in_queue);

/* A place in the order in which messages are due. */
typedef struct OutboxDuePlace
{
	TimestampTz due_at;
	int64		place;
} OutboxDuePlace;

/* Before all that there may be. */
#define OUTBOX_DUE_BEGIN ((OutboxDuePlace) {DT_NOBEGIN, PG_INT64_MIN})

/*
 * Hand the messages that are due to `take`, oldest due time first, each
 * followed by some that wait behind it; those in `busy` (a hash of ids) are
 * passed over. Returns when to ask again, DT_NOEND: not before something
 * changes.
 *
 * Nothing up to *after is looked at; that is moved behind what was taken or passed over,
 * and up to `now` if that was all. The worker makes nothing due in the past (record.c,
 * deferred.c), but somebody else may: whoever calls this begins anew now and then.
 */
extern TimestampTz outbox_pick_due(TimestampTz now, OutboxDuePlace *after, struct HTAB *busy,
								   OutboxTake take, void *arg);

/* What has become of a run of rows. */
typedef struct OutboxPicked
{
	int			count;			/* handed on */
	uint64		passed;			/* rows: these, and those that were busy */
	bool		full;			/* there was no room for another */
	bool		end;			/* there are no more rows behind it */
} OutboxPicked;

/*
 * Hand the next `limit` messages that wait for a destination to `take`, in their
 * order, beginning behind *place, which is moved on; each followed by those
 * behind it, and passing over those in `busy`, as above.
 */
extern OutboxPicked outbox_pick_waiting(const OutboxDestination *destination, int64 *place,
										int limit, struct HTAB *busy,
										OutboxTake take, void *arg);

/* The destinations that messages wait for, at most `limit` of each scope. */
typedef void (*OutboxFound) (void *arg, const OutboxDestination *destination);
extern void outbox_pick_destinations(int limit, OutboxFound found, void *arg);

#endif							/* OUTBOX_PICK_H */
