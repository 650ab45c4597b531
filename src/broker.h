/*
 * broker.h
 *		The connection to RabbitMQ as the worker sees it: one state machine
 *		that is driven by outbox_broker_turn(), never blocks, never raises, and
 *		reports what happened as events.
 */
#ifndef OUTBOX_BROKER_H
#define OUTBOX_BROKER_H

#include "message.h"
#include "buffer.h"
#include "amqp_codec.h"
#include "datatype/timestamp.h"

typedef enum OutboxBrokerState
{
	OUTBOX_BROKER_IDLE,			/* no connection wanted yet, or none configured */
	OUTBOX_BROKER_BACKOFF,		/* waiting until the next attempt */
	OUTBOX_BROKER_RESOLVING,	/* name look-up is running */
	OUTBOX_BROKER_CONNECTING,	/* transport is being established */
	OUTBOX_BROKER_HANDSHAKE,	/* from the protocol header to connection.open-ok */
	OUTBOX_BROKER_CHANNEL,		/* opening the channel, confirm.select */
	OUTBOX_BROKER_READY			/* may publish */
} OutboxBrokerState;

typedef enum OutboxBrokerEventType
{
	OUTBOX_EVENT_READY,			/* a fresh channel: delivery tags start at 1 */
	OUTBOX_EVENT_ACK,
	OUTBOX_EVENT_NACK,
	OUTBOX_EVENT_RETURN,		/* precedes the ack of the same message */
	OUTBOX_EVENT_CHANNEL_CLOSED,	/* all unconfirmed are unknown; READY follows */
	OUTBOX_EVENT_LOST,			/* connection gone, all unconfirmed are unknown */
	OUTBOX_EVENT_BLOCKED,
	OUTBOX_EVENT_UNBLOCKED
} OutboxBrokerEventType;

typedef struct OutboxBrokerEvent
{
	OutboxBrokerEventType type;
	uint64		delivery_tag;	/* ack, nack */
	bool		multiple;		/* ack, nack */
	int64		id;				/* return: x-outbox-id; 0 if it carried none */
	uint16		code;			/* return, channel closed, lost by connection.close */
	bool		intended;		/* lost: our own doing, outbox.uri was changed */
	size_t		unsent;			/* bytes of output not sent by then: answers, channel closed, lost */
	char		text[512];		/* lost: for a person, with the broker's words; return,
								 * channel closed, blocked: the broker's words alone */
} OutboxBrokerEvent;

typedef struct OutboxBroker OutboxBroker;

/* All memory of the connection is allocated below `parent`. */
extern OutboxBroker *outbox_broker_create(MemoryContext parent, const char *connection_name);

/*
 * Read outbox.uri and outbox.passfile again. A connection that no longer
 * matches the settings is closed, which is reported as LOST; where there is
 * none the next turn begins an attempt, whatever the backoff.
 */
extern void outbox_broker_configure(OutboxBroker *broker);

/*
 * Let the next attempt go where another connection, which was configured with
 * the same settings, is.
 */
extern void outbox_broker_follow(OutboxBroker *broker, const OutboxBroker *other);

/*
 * One turn: carry every pending step as far as it goes without waiting: name
 * look-up, connect, handshake, read, write, heartbeats, time-outs. Reading
 * stops early while events are waiting to be taken. `now` comes from
 * GetCurrentTimestamp().
 */
extern void outbox_broker_turn(OutboxBroker *broker, TimestampTz now);

/* Take the next event; false when there is none.  Decodes straight from the
 * input, so a million acks need no queue. */
extern bool outbox_broker_next_event(OutboxBroker *broker, OutboxBrokerEvent *event);

extern OutboxBrokerState outbox_broker_state(const OutboxBroker *broker);
extern bool outbox_broker_blocked(const OutboxBroker *broker);	/* by connection.blocked */
extern TimestampTz outbox_broker_connected_since(const OutboxBroker *broker);

/* Has the broker said anything since the connection became READY? */
extern bool outbox_broker_heard_from(const OutboxBroker *broker);

/* "host:port/vhost" of the current or last attempt, no user, no password. */
extern const char *outbox_broker_name(const OutboxBroker *broker);

/* Where to append publishes while READY; the caller moves `sendable`, always to the
 * end of a message.  When READY is reported anew it has been emptied. */
extern OutboxBuffer *outbox_broker_output(OutboxBroker *broker);
extern uint32 outbox_broker_frame_max(const OutboxBroker *broker);

/* For the wait: the socket (PGINVALID_SOCKET if none), WL_SOCKET_* wanted, and the
 * latest moment of the next turn (DT_NOEND if there is none). */
extern pgsocket outbox_broker_socket(const OutboxBroker *broker);
extern uint32 outbox_broker_wanted(const OutboxBroker *broker);
extern TimestampTz outbox_broker_deadline(const OutboxBroker *broker);

/* A new number with each socket, so that the wait knows when to be rebuilt. */
extern uint32 outbox_broker_generation(const OutboxBroker *broker);

/* The connection is of no use, in a way only the caller can see (an ack for a tag
 * never sent, no ack at all): end it; LOST follows.  `why` is copied. */
extern void outbox_broker_fail(OutboxBroker *broker, const char *why);

/* End it because `other` has been LOST: its LOST follows with the same words, once
 * what had arrived is taken.  Nothing that was sent here was to blame. */
extern void outbox_broker_end_like(OutboxBroker *broker, const OutboxBroker *other);

/* Close the socket at once, waiting for nothing.  Safe at any time, also at exit.
 * No event tells of it, those not yet taken are dropped, and the state is IDLE
 * until outbox_broker_configure() is called again. */
extern void outbox_broker_close(OutboxBroker *broker);

/* The same, and all of its memory is given back. */
extern void outbox_broker_destroy(OutboxBroker *broker);

#endif							/* OUTBOX_BROKER_H */
