/*
 * amqp_codec.h
 *		AMQP 0-9-1 to and from bytes, without any I/O.
 *
 *		amqp_encode.c writes what we send, with librabbitmq. amqp_decode.c
 *		reads what the broker sends, by hand: a dozen methods of fixed shape,
 *		each length checked before it is believed. It uses neither PostgreSQL
 *		nor librabbitmq, allocates nothing and cannot raise, so it can be
 *		fuzzed alone.
 */
#ifndef OUTBOX_AMQP_CODEC_H
#define OUTBOX_AMQP_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTBOX_AMQP_FRAME_MAX	131072	/* what we offer; the broker may lower it */
#define OUTBOX_AMQP_FRAME_MIN	4096	/* less than this is refused at tune */
#define OUTBOX_AMQP_OVERHEAD	8		/* 7 bytes header, 1 byte end mark */
#define OUTBOX_AMQP_CHANNEL		1		/* the channel that publishes */
#define OUTBOX_AMQP_TEXT		256		/* a shortstr and its terminator */

/* ---- what the broker sends (amqp_decode.c) ---- */

typedef enum OutboxFrameType
{
	OUTBOX_FRAME_INCOMPLETE,	/* more bytes are needed */
	OUTBOX_FRAME_MALFORMED,		/* see error; the connection must end */
	OUTBOX_FRAME_HEARTBEAT,
	OUTBOX_FRAME_START,			/* connection.start */
	OUTBOX_FRAME_TUNE,
	OUTBOX_FRAME_OPEN_OK,
	OUTBOX_FRAME_CHANNEL_OPEN_OK,
	OUTBOX_FRAME_CONFIRM_SELECT_OK,
	OUTBOX_FRAME_ACK,
	OUTBOX_FRAME_NACK,
	OUTBOX_FRAME_RETURN,		/* its content header and body follow */
	OUTBOX_FRAME_CONTENT_HEADER,
	OUTBOX_FRAME_CONTENT_BODY,
	OUTBOX_FRAME_CHANNEL_FLOW,
	OUTBOX_FRAME_CHANNEL_CLOSE,
	OUTBOX_FRAME_CHANNEL_CLOSE_OK,
	OUTBOX_FRAME_CONNECTION_CLOSE,
	OUTBOX_FRAME_CONNECTION_CLOSE_OK,
	OUTBOX_FRAME_BLOCKED,
	OUTBOX_FRAME_UNBLOCKED
} OutboxFrameType;

typedef struct OutboxFrame
{
	OutboxFrameType type;
	size_t		length;			/* bytes it occupied, header and end mark included */
	uint64_t	delivery_tag;	/* ack, nack */
	bool		multiple;		/* ack, nack */
	bool		active;			/* channel.flow */
	uint16_t	code;			/* return, channel.close, connection.close */
	char		text[OUTBOX_AMQP_TEXT]; /* reply text, blocked reason; printable, terminated */
	uint16_t	channel_max;	/* tune */
	uint32_t	frame_max;		/* tune, 0 = no limit */
	uint16_t	heartbeat;		/* tune, seconds */
	bool		plain;			/* start: mechanisms offered */
	bool		external;
	uint64_t	body_size;		/* content header: bytes of body that follow;
								 * content body: bytes in this frame */
	bool		has_id;			/* content header: it carries x-outbox-id */
	int64_t		id;
	const char *error;			/* malformed: a constant phrase for the log */
} OutboxFrame;

/*
 * Decode the first frame of data[0 .. len).  frame_max is the negotiated limit
 * (OUTBOX_AMQP_FRAME_MAX before tune).  Reads nothing beyond len, whatever
 * the bytes say.
 */
extern void outbox_amqp_decode(const uint8_t *data, size_t len, uint32_t frame_max,
							   OutboxFrame *frame);

/*
 * Copy text of unknown origin so that a person may read it: control bytes and
 * invalid UTF-8 become '?', what does not fit is cut between characters.
 */
extern void outbox_amqp_printable(char *dst, size_t size, const void *src, size_t len);

#endif							/* OUTBOX_AMQP_CODEC_H */

/*
 * ---- what we send (amqp_encode.c) ----
 *
 * Declared as soon as buffer.h and message.h have been included, so that the
 * decoder above can do without them, and whatever the order of the includes.
 */
#if defined(OUTBOX_BUFFER_H) && defined(OUTBOX_MESSAGE_H) && \
	!defined(OUTBOX_AMQP_ENCODE_DECLARED)
#define OUTBOX_AMQP_ENCODE_DECLARED

struct amqp_basic_properties_t_;

extern void outbox_amqp_put_protocol_header(OutboxBuffer *buffer);
extern void outbox_amqp_put_start_ok(OutboxBuffer *buffer, bool external,
									 const char *user, const char *password,
									 const char *connection_name);
extern void outbox_amqp_put_tune_ok(OutboxBuffer *buffer, uint16_t channel_max,
									uint32_t frame_max, uint16_t heartbeat);
extern void outbox_amqp_put_open(OutboxBuffer *buffer, const char *vhost);
extern void outbox_amqp_put_channel_open(OutboxBuffer *buffer);
extern void outbox_amqp_put_confirm_select(OutboxBuffer *buffer);
extern void outbox_amqp_put_channel_flow_ok(OutboxBuffer *buffer, bool active);
extern void outbox_amqp_put_channel_close_ok(OutboxBuffer *buffer);
extern void outbox_amqp_put_connection_close(OutboxBuffer *buffer);
extern void outbox_amqp_put_connection_close_ok(OutboxBuffer *buffer);
extern void outbox_amqp_put_heartbeat(OutboxBuffer *buffer);

/*
 * Append basic.publish with its content, split into body frames of at most
 * frame_max.  Returns false, with nothing appended, if the content header does
 * not fit into one frame.
 */
extern bool outbox_amqp_put_publish(OutboxBuffer *buffer, uint32_t frame_max,
									OutboxBytes exchange, OutboxBytes routing_key,
									bool mandatory,
									const struct amqp_basic_properties_t_ *properties,
									const char *body, size_t body_len);

/* Bytes the content header takes in a frame, or -1 if more than frame_max allows. */
extern int	outbox_amqp_content_header_size(const struct amqp_basic_properties_t_ *properties,
											uint32_t frame_max);
#endif							/* OUTBOX_AMQP_ENCODE_DECLARED */
