/*
 * peer.h
 *		The broker of a conversation: hostile on its first connections, honest
 *		on the last.
 */
#ifndef FUZZ_PEER_H
#define FUZZ_PEER_H

#include "datatype/timestamp.h"

#include "random.h"

typedef enum Hostility
{
	KIND_NONE,
	KIND_REFUSES_TCP,
	KIND_IGNORES_TCP,
	KIND_GARBAGE,
	KIND_MUTATED,
	KIND_TRUNCATED,
	KIND_OVERSIZED,
	KIND_NO_END_MARK,
	KIND_WRONG_CHANNEL,
	KIND_ACK_NEVER_SENT,
	KIND_ACK_TWICE,
	KIND_RETURN_UNKNOWN,
	KIND_ABSURD_LENGTH,
	KIND_NESTED_TABLES,
	KIND_OUT_OF_TURN,
	KIND_UNEXPECTED,
	KIND_EAGER,
	KIND_TUNE,
	KIND_CLOSES_CONNECTION,
	KIND_CLOSES_CHANNEL,
	KIND_REFUSES_MESSAGES,
	KIND_BLOCKS,
	KIND_FLOOD,
	KIND_TRICKLE,
	KIND_DEAF,
	KIND_SILENT,
	KIND_END_OF_FILE,
	KIND_RESET,
	KIND_STORM,
	KINDS
} Hostility;

extern const char *const hostility_names[KINDS];

#define MAX_MESSAGES 64

typedef struct Peer
{
	Hostility	kind;			/* of the connection, or of the next one */
	bool		has_struck;		/* the hostile act of this connection is done */
	bool		may_lie;		/* it may have confirmed what it never got */
	bool		stored[MAX_MESSAGES + 1];	/* taken by an honest answer, by id */
} Peer;

extern Peer peer;

/* Begin a conversation, in which the first `hostile` connections are hostile. */
extern void peer_init(Random *random, int messages, int hostile);
extern void peer_free(void);

/* Read, judge and answer. */
extern void peer_turn(TimestampTz now);

/* When it will do something although nothing arrives. */
extern TimestampTz peer_deadline(void);

/* The clock was set back. */
extern void peer_follow_clock(TimestampTz back);

/* The connection, or the attempt, has ended: another kind of peer takes its place. */
extern void peer_lost(void);

/* Has it given the worker no reason to leave so far? */
extern bool peer_is_bearable(void);

/* conversation.c: what the messages are, and what to do if something is wrong */
extern size_t message_size(int64 id);
extern unsigned char message_byte(int64 id, size_t at);
extern bool worker_is_blocked(void);
extern void conversation_failed(const char *format,...) pg_attribute_printf(1, 2);

#endif							/* FUZZ_PEER_H */
