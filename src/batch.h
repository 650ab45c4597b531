/*
 * batch.h
 *		The noun in which the steps of a message's path meet: the batch, which
 *		is every message that was read from storage and whose fate is not yet
 *		recorded in progress.
 */
#ifndef OUTBOX_BATCH_H
#define OUTBOX_BATCH_H

#include "message.h"
#include "settings.h"

struct HTAB;
struct OutboxWindow;

/* What has become of a message since it was read. */
typedef enum OutboxOutcome
{
	OUTBOX_WAITING,				/* to be sent (again), or another of its key first */
	OUTBOX_SENT,				/* on its way; the broker has not answered */
	/* settled, all that follow: */
	OUTBOX_CONFIRMED,
	OUTBOX_RETURNED,			/* confirmed, but no queue wanted it */
	OUTBOX_NACKED,
	OUTBOX_REJECTED,			/* the broker closed the channel because of it */
	OUTBOX_UNSENDABLE,			/* its header fits no frame of this broker */
	OUTBOX_SCHEDULED,			/* deliver_at is in the future */
	OUTBOX_BEHIND,				/* has to queue up in deferred behind its key */
	OUTBOX_UNAVAILABLE,			/* has to wait in deferred for its destination */
	OUTBOX_VANISHED				/* somebody deleted the row */
} OutboxOutcome;

/* The broker has seen it and not taken it; it may be tried again. */
static inline bool
outbox_outcome_is_refusal(OutboxOutcome outcome)
{
	return outcome == OUTBOX_RETURNED || outcome == OUTBOX_NACKED ||
		outcome == OUTBOX_REJECTED || outcome == OUTBOX_UNAVAILABLE;
}

/* What of a message's destination does not work, if anything (breaker.c). */
typedef enum OutboxScope
{
	OUTBOX_SCOPE_NONE,
	OUTBOX_SCOPE_EXCHANGE,		/* its exchange: missing, or forbidden to us */
	OUTBOX_SCOPE_ROUTE			/* its exchange and routing key: confirms nothing */
} OutboxScope;

#define OUTBOX_KEY_SIZE OUTBOX_NAME_SIZE	/* an ordering key and its terminator */
#define OUTBOX_NO_ENTRY UINT64_MAX

/* What the batch holds of one ordering key; exists while it holds anything. */
typedef struct OutboxKey
{
	char		key[OUTBOX_KEY_SIZE];	/* must be first: hash key */
	int			entries;		/* in the batch */
	int			turns;			/* taken, at most outbox.in_flight_per_key */
	int			refused;		/* settled, not taken by the broker, not recorded */
	int			behind;			/* settled as OUTBOX_BEHIND, not recorded */
	int			waiting;		/* entries waiting for their turn */
	uint64		first_waiting;	/* they, in order ... */
	uint64		last_waiting;	/* ... linked by next_waiting */
	uint64		without_queue;	/* in deferred, as of that OutboxPublisher.queues_version */
} OutboxKey;

typedef struct OutboxEntry
{
	int64		id;
	struct OutboxWindow *window;	/* NULL: from deferred */
	OutboxKey  *key;			/* NULL: none */
	uint64		delivery_tag;	/* if sent, or if it was; 0: never */
	uint64		sent_end;		/* if sent: its channel's sent_bytes after it */
	TimestampTz sent_at;		/* if sent: when it was encoded */
	uint64		next_waiting;	/* entry index, OUTBOX_NO_ENTRY: none */
	char	   *error;			/* the broker's words, palloc'd; NULL: none */
	TimestampTz deliver_at;
	int32		attempts;		/* before this one */
	uint32		size;			/* bytes on the wire; before, of the payload */
	int8		segment;
	uint8		channel;		/* number of the one it is, or was, sent on */
	uint8		outcome;		/* OutboxOutcome */
	bool		returned;		/* basic.return came, its ack is still to come */
	bool		has_turn;		/* holds one of the turns of its key */
	bool		in_queue;		/* from deferred, where it is in a queue */
	uint8		suspect;		/* OutboxScope: what it is to be looked at for */
	uint8		unavailable;	/* OutboxScope: why, if OUTBOX_UNAVAILABLE */
} OutboxEntry;

/*
 * What is on its way over one connection, and what its delivery tags mean.  The
 * connection may open its channel anew; all that was in flight is then unsent.
 */
typedef struct OutboxChannel
{
	int			number;			/* its place in OutboxBatch.channels */
	uint64	   *published;		/* entry index by delivery tag, a ring */
	uint64		next_tag;
	uint64		lowest_tag;		/* all below are settled */
	uint64		highest_answered;	/* delivery tag; all above are in flight */
	int			in_flight;
	uint64		sent_bytes;		/* those still in the output included */
	bool		find_culprit;	/* `refusal` may name the exchange of one sent on it */
	char		refusal[512];	/* why it was last closed */
} OutboxChannel;

/*
 * A ring of everything that was read and is not yet recorded, in the order it
 * was read.  Entries are named by an index that only grows.
 */
#define OUTBOX_BATCH_SIZE 65536	/* a power of 2 */

typedef struct OutboxBatch
{
	MemoryContext context;		/* owns entries, keys, error texts */
	OutboxEntry *entries;
	uint64		head;			/* oldest entry */
	uint64		tail;			/* next free */
	uint64		resend;			/* entries from here on may have to be sent (again) */
	uint64		gated;			/* entries from here on wait for the durability gate */
	uint64		careful_until;	/* while an entry below is unrecorded: one at a time */
	int64		suspect_id;		/* oldest unsettled when a connection was closed on us */
	uint64		first_ready;	/* entries whose turn has come in their key */
	uint64		last_ready;
	OutboxChannel channels[OUTBOX_CONNECTIONS_MAX];
	int			channel_count;
	int			in_flight;		/* on all channels, as are the bytes */
	Size		in_flight_bytes;
	int			waiting;		/* for a turn in their key */
	bool		several_per_key;	/* were in flight at a time, since the beginning */
	struct HTAB *keys;
	struct HTAB *from_deferred;	/* ids of deferred that must not be picked now */
} OutboxBatch;

/* With one channel. */
extern OutboxBatch *outbox_batch_create(MemoryContext context);

/* While nothing is in flight: have so many channels. */
extern void outbox_batch_set_channels(OutboxBatch *batch, int count);

static inline OutboxEntry *
outbox_batch_entry(OutboxBatch *batch, uint64 index)
{
	return &batch->entries[index % OUTBOX_BATCH_SIZE];
}

/* Append a message that was read; it is WAITING, and not yet in any list. */
extern uint64 outbox_batch_append(OutboxBatch *batch, const OutboxMessage *message,
								  struct OutboxWindow *window);

/*
 * May it be sent now?  If another of its key must be first, it is made to wait; it
 * is settled as OUTBOX_BEHIND if one was refused, or if too many wait already.
 */
extern bool outbox_batch_take_turn(OutboxBatch *batch, uint64 index);

/*
 * The channel that it is to be sent on: always the same for an ordering key; without
 * one, whichever has the fewest in flight.
 */
extern OutboxChannel *outbox_batch_channel_for(OutboxBatch *batch, uint64 index);

/* It is on its way, under the next delivery tag of the channel. */
extern void outbox_batch_sent(OutboxBatch *batch, OutboxChannel *channel, uint64 index,
							  uint32 size, TimestampTz now);

/* Its fate is known.  `error` is copied, NULL if there is none. */
extern void outbox_batch_settle(OutboxBatch *batch, uint64 index,
								OutboxOutcome outcome, const char *error);

/*
 * Nothing more will be sent: what waits for its turn in its ordering key is settled
 * as OUTBOX_BEHIND, so that what is confirmed behind it can be recorded.
 */
extern void outbox_batch_end_waiting(OutboxBatch *batch);

/* A channel is gone: all that is sent on it and not settled must be sent again. */
extern void outbox_batch_unsend(OutboxBatch *batch, OutboxChannel *channel);

/* Its destination does not work, as far as `scope` says. */
extern void outbox_batch_settle_unavailable(OutboxBatch *batch, uint64 index,
											OutboxScope scope, const char *error);

/* The entry under a delivery tag, OUTBOX_NO_ENTRY if it is not in flight. */
extern uint64 outbox_batch_in_flight(OutboxBatch *batch, const OutboxChannel *channel,
									 uint64 delivery_tag);

/* The one that has been in flight for longest, OUTBOX_NO_ENTRY if none is. */
extern uint64 outbox_batch_oldest_in_flight(OutboxBatch *batch, const OutboxChannel *channel);

/*
 * The oldest in flight is not answered: those that may be the reason, sent by
 * then, are to be looked at for `scope`.
 */
extern void outbox_batch_suspect(OutboxBatch *batch, const OutboxChannel *channel,
								 TimestampTz sent_by, OutboxScope scope);

/* Take the next entry whose turn has come; OUTBOX_NO_ENTRY: none. */
extern uint64 outbox_batch_take_ready(OutboxBatch *batch);

/* The oldest entry is recorded: forget it. */
extern void outbox_batch_pop(OutboxBatch *batch);

/* Is the oldest entry settled, and past the gate? */
extern bool outbox_batch_head_settled(OutboxBatch *batch);

/* What the batch holds of an ordering key, NULL: nothing. */
extern OutboxKey *outbox_batch_find_key(OutboxBatch *batch, OutboxBytes key);

/* Is there one of its key, settled and not recorded, that it must stay behind? */
extern bool outbox_batch_key_is_blocked(OutboxBatch *batch, OutboxBytes key);

/* Would one more of its key wait for its turn, behind a few others at most? */
extern bool outbox_batch_would_wait(OutboxBatch *batch, OutboxBytes key);

/* May another message be appended? */
static inline bool
outbox_batch_has_space(OutboxBatch *batch)
{
	return batch->tail - batch->head < OUTBOX_BATCH_SIZE;
}

/* The clock was set back. */
extern void outbox_batch_follow_clock(OutboxBatch *batch, TimestampTz back);

/* How many may be in flight at once: outbox.in_flight_messages, or one at a time. */
extern int	outbox_batch_limit(OutboxBatch *batch);

#endif							/* OUTBOX_BATCH_H */
