/*
 * message.h
 *		A message as it is stored.
 */
#ifndef OUTBOX_MESSAGE_H
#define OUTBOX_MESSAGE_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#define OUTBOX_SEGMENTS 4		/* outbox.message_0 .. message_3 */
#define OUTBOX_DEFERRED (-1)	/* "segment" of a message read from deferred */

/* Longer than any name in any encoding: AMQP allows 255 bytes of UTF-8. */
#define OUTBOX_NAME_SIZE 512

/* A run of bytes that somebody else owns; data is NULL where SQL has NULL. */
typedef struct OutboxBytes
{
	const char *data;
	uint32		len;
} OutboxBytes;

/*
 * One message as stored. Pointers lead into the tuple it was read from, and
 * the payload may still be a TOAST pointer: whoever encodes it detoasts it,
 * one message at a time.
 */
typedef struct OutboxMessage
{
	int64		id;
	uint64		xid;			/* top-level transaction that enqueued it */
	int			segment;		/* 0 .. OUTBOX_SEGMENTS - 1, or OUTBOX_DEFERRED */
	int32		attempts;		/* times it was refused so far */
	TimestampTz enqueued_at;
	TimestampTz deliver_at;		/* DT_NOBEGIN: at once */
	pg_uuid_t	message_id;
	OutboxBytes exchange;
	OutboxBytes routing_key;
	OutboxBytes ordering_key;	/* data is NULL: none */
	OutboxBytes content_type;	/* data is NULL: none */
	Jsonb	   *properties;		/* NULL: none */
	Jsonb	   *headers;		/* NULL: none */
	Datum		payload;		/* bytea, possibly toasted */
} OutboxMessage;

/* Fill a message from a tuple whose first columns are those of a segment. */
extern void outbox_message_from_tuple(OutboxMessage *message, HeapTuple tuple,
									  TupleDesc desc, int segment);

/*
 * Read one message again by its key, in a transaction with an active snapshot.
 * NULL if somebody deleted it; else the message is valid until
 * outbox_message_fetch_end().
 */
typedef struct OutboxFetch OutboxFetch;
extern OutboxFetch *outbox_message_fetch(int segment, int64 id, OutboxMessage *message);
extern void outbox_message_fetch_end(OutboxFetch *fetch);

/*
 * Text of this database in UTF-8, as all text goes to the broker. The same
 * pointer comes back if there is nothing to convert; else the result is
 * palloc'ed, and the caller must be in a transaction.
 */
extern OutboxBytes outbox_utf8(OutboxBytes text);

/*
 * Is it the address of a consumer that waits for the answer to a request (direct
 * reply-to), and no name of a queue?
 */
extern bool outbox_is_direct_reply_to(const void *routing_key, size_t len);

#endif							/* OUTBOX_MESSAGE_H */
