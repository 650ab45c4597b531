/*
 * broker_private.h
 *		The inside of OutboxBroker, for the broker*.c files only.
 *
 *		broker.c			settings, the end of a connection, questions
 *		broker_turn.c		each state's step: attempts, reading, time
 *		broker_handshake.c	from connection.start to confirm.select-ok
 *		broker_frames.c		what the broker sends, turned into events
 *		broker_output.c		what is sent, and in which order
 */
#ifndef OUTBOX_BROKER_PRIVATE_H
#define OUTBOX_BROKER_PRIVATE_H

#include "broker.h"
#include "transport.h"
#include "uri.h"

#define OUTBOX_BROKER_INPUT		(256 * 1024)	/* more than any frame */

#define MS(ms) ((TimestampTz) (ms) * 1000)

/* More of our answers than this unread, and the broker is up to something. */
#define OUTBOX_BROKER_CONTROL_MAX	(64 * 1024)

/* Why a connection is lost, as far as it matters to the next attempt. */
typedef enum OutboxLoss
{
	OUTBOX_LOSS_NETWORK,		/* may work again in a second */
	OUTBOX_LOSS_REFUSED,		/* login, vhost, TLS: somebody must change something */
	OUTBOX_LOSS_SETTINGS		/* our own doing: try again at once */
} OutboxLoss;

/* basic.return comes as a method, a content header and body frames. */
typedef enum OutboxReturnStep
{
	OUTBOX_RETURN_NONE,
	OUTBOX_RETURN_HEADER,		/* the content header must come next */
	OUTBOX_RETURN_BODY			/* return_left bytes of body must come next */
} OutboxReturnStep;

struct OutboxBroker
{
	MemoryContext context;
	char	   *connection_name;

	/* settings */
	OutboxUri  *uris;
	int			uri_count;
	int			uri_index;		/* of the attempt or connection, -1: none of uris */

	/* attempts */
	OutboxBrokerState state;
	TimestampTz now;			/* of the last turn */
	TimestampTz next_attempt;	/* BACKOFF */
	TimestampTz phase_deadline; /* RESOLVING to CHANNEL */
	TimestampTz poll_at;		/* RESOLVING: look again */
	int			poll_delay_ms;
	int			failures;		/* in a row */
	TimestampTz connected_since;	/* first READY of this connection, 0: none yet */
	char		endpoint[OUTBOX_URI_NAME_MAX + 16]; /* host:port */
	char		name[300];		/* host:port/vhost */

	/*
	 * A connection that has ended stays in its state until the frames that had
	 * arrived before are taken; then `lost` is reported.
	 */
	bool		ending;
	OutboxLoss	loss;
	OutboxBrokerEvent lost;

	/* An event that the turn came upon while it looked for handshake frames. */
	bool		have_event;
	OutboxBrokerEvent event;

	/* connection */
	OutboxTransport transport;
	OutboxFrameType expected;	/* the handshake's next frame; HEARTBEAT: none */
	uint32		frame_max;
	int			heartbeat;		/* s, 0: off or not yet agreed */
	TimestampTz last_sent;
	TimestampTz last_received;
	bool		blocked;		/* connection.blocked */
	bool		flow_stopped;	/* channel.flow */

	/* input */
	OutboxBuffer input;
	OutboxReturnStep return_step;
	uint64		return_left;
	OutboxBrokerEvent returned;

	/* output, see broker_output.c */
	OutboxBuffer data;
	size_t		frame_left;		/* bytes of the frame at data.start still to be sent,
								 * if a part of it has been sent */
	OutboxBuffer control;
	bool		secret;			/* control holds, or held, a password */
};

/* broker.c */
extern void outbox_broker_end(OutboxBroker *broker, OutboxLoss loss, uint16 code,
							  const char *format,...) pg_attribute_printf(4, 5);
extern void outbox_broker_violation(OutboxBroker *broker, const char *why);
extern void outbox_broker_become_lost(OutboxBroker *broker, OutboxBrokerEvent *event);
extern void outbox_broker_start_phase(OutboxBroker *broker);

/* broker_handshake.c */
extern void outbox_broker_handshake_begin(OutboxBroker *broker);
extern bool outbox_broker_handshake_frame(OutboxBroker *broker, const OutboxFrame *frame,
										  OutboxBrokerEvent *event);

/* broker_frames.c */
extern bool outbox_broker_decode(OutboxBroker *broker, OutboxBrokerEvent *event);
extern void outbox_broker_event(OutboxBrokerEvent *event, OutboxBrokerEventType type,
								uint16 code, const char *text);

/* broker_output.c */
extern bool outbox_broker_send(OutboxBroker *broker);
extern bool outbox_broker_want_write(const OutboxBroker *broker);
extern bool outbox_broker_between_messages(const OutboxBroker *broker);
extern bool outbox_broker_can_control(const OutboxBroker *broker);
extern void outbox_broker_drop_unsent(OutboxBroker *broker);
extern void outbox_broker_forget_output(OutboxBroker *broker);
extern void outbox_broker_farewell(OutboxBroker *broker);

#endif							/* OUTBOX_BROKER_PRIVATE_H */
