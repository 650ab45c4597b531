/*
 * amqp_encode.c
 *		Everything we send to the broker, written as whole frames behind `end`
 *		of a buffer: the handshake, the channel, and each message of a batch.
 *
 *		librabbitmq serves as a codec only: amqp_encode_method and
 *		amqp_encode_properties are pure functions from a structure to bytes.
 *		Never here: an amqp_connection_state_t, or any call of the library that
 *		does I/O (they wait without a deadline and ignore signals).
 *
 *		On entry names are at most 255 bytes (enqueue() saw to that), user and
 *		password within the limits of uri.h.  `sendable` is never touched.
 */
#include "pgcompat.h"

#include "amqp_headers.h"
#include "batch.h"
#include "buffer.h"
#include "amqp_codec.h"
#include "uri.h"

#define FRAME_PREFIX		(OUTBOX_AMQP_OVERHEAD - 1)
#define METHOD_ROOM			600		/* any method but start-ok, with its frame */
#define START_OK_ROOM		8192
#define HEADER_FIXED		12		/* class, weight, body size */
#define PROPERTIES_TRY		4096	/* most headers are smaller */

#ifndef OUTBOX_VERSION
#define OUTBOX_VERSION		"unknown"
#endif

static inline amqp_bytes_t
bytes(const char *data, size_t len)
{
	amqp_bytes_t result;

	result.len = len;
	result.bytes = unconstify(char *, data);
	return result;
}

static inline char *
put_number(char *at, uint64 value, int width)
{
	for (int i = width - 1; i >= 0; i--)
		*at++ = (char) (value >> (8 * i));
	return at;
}

static inline void
put_prefix(char *at, int type, int channel, size_t size)
{
	at = put_number(at, type, 1);
	at = put_number(at, channel, 2);
	put_number(at, size, 4);
}

/*
 * Write a method frame to `at`, where `room` bytes are free; returns its
 * length. That it fits was made sure by the caller, so a failure is our
 * mistake; 0 is then returned and nothing sent, for this may not raise.
 */
static size_t
method_frame(char *at, size_t room, int channel, amqp_method_number_t method,
			 void *decoded)
{
	char	   *payload = at + FRAME_PREFIX;
	int			len;

	put_number(payload, method, 4);
	len = amqp_encode_method(method, decoded,
							 bytes(payload + 4, room - OUTBOX_AMQP_OVERHEAD - 4));
	Assert(len >= 0);
	if (len < 0)
		return 0;
	put_prefix(at, AMQP_FRAME_METHOD, channel, (size_t) len + 4);
	payload[4 + len] = (char) AMQP_FRAME_END;
	return (size_t) len + 4 + OUTBOX_AMQP_OVERHEAD;
}

static void
put_method(OutboxBuffer *buffer, int channel, amqp_method_number_t method,
		   void *decoded)
{
	char	   *at = outbox_buffer_reserve(buffer, METHOD_ROOM);

	buffer->end += method_frame(at, METHOD_ROOM, channel, method, decoded);
}

void
outbox_amqp_put_protocol_header(OutboxBuffer *buffer)
{
	outbox_buffer_append(buffer, "AMQP\0\0\x09\x01", 8);
}

static amqp_table_entry_t
text_entry(const char *key, const char *value)
{
	amqp_table_entry_t entry;

	entry.key = bytes(key, strlen(key));
	entry.value.kind = AMQP_FIELD_KIND_UTF8;
	entry.value.value.bytes = bytes(value, strlen(value));
	return entry;
}

static amqp_table_entry_t
table_entry(const char *key, amqp_table_entry_t *entries, int count)
{
	amqp_table_entry_t entry;

	entry.key = bytes(key, strlen(key));
	entry.value.kind = AMQP_FIELD_KIND_TABLE;
	entry.value.value.table.num_entries = count;
	entry.value.value.table.entries = entries;
	return entry;
}

/*
 * The user and password leave no copy here but the one in the buffer, which
 * broker.c wipes once it is sent.
 */
void
outbox_amqp_put_start_ok(OutboxBuffer *buffer, bool external, const char *user,
						 const char *password, const char *connection_name)
{
	static const char *const abilities[] = {
		"connection.blocked", "publisher_confirms", "basic.nack",
		"authentication_failure_close", "consumer_cancel_notify"
	};
	amqp_table_entry_t can[lengthof(abilities)];
	amqp_table_entry_t properties[5];
	amqp_connection_start_ok_t method;
	char		response[OUTBOX_URI_NAME_MAX + OUTBOX_URI_PASSWORD_MAX + 2];
	size_t		user_len = strnlen(user, OUTBOX_URI_NAME_MAX);
	size_t		len = 0;
	char	   *at = outbox_buffer_reserve(buffer, START_OK_ROOM);

	for (size_t i = 0; i < lengthof(abilities); i++)
	{
		can[i].key = bytes(abilities[i], strlen(abilities[i]));
		can[i].value.kind = AMQP_FIELD_KIND_BOOLEAN;
		can[i].value.value.boolean = 1;
	}
	properties[0] = text_entry("product", "outbox");
	properties[1] = text_entry("version", OUTBOX_VERSION);
	properties[2] = text_entry("platform", "PostgreSQL");
	properties[3] = text_entry("connection_name", connection_name);
	properties[4] = table_entry("capabilities", can, lengthof(can));

	if (!external)
	{
		size_t		password_len = strnlen(password, OUTBOX_URI_PASSWORD_MAX);

		response[0] = '\0';
		memcpy(response + 1, user, user_len);
		response[1 + user_len] = '\0';
		memcpy(response + 2 + user_len, password, password_len);
		len = 2 + user_len + password_len;
	}
	method.client_properties.num_entries = lengthof(properties);
	method.client_properties.entries = properties;
	method.mechanism = external ? bytes("EXTERNAL", 8) : bytes("PLAIN", 5);
	method.response = bytes(response, len);
	method.locale = bytes("en_US", 5);
	buffer->end += method_frame(at, START_OK_ROOM, 0,
								AMQP_CONNECTION_START_OK_METHOD, &method);
	explicit_bzero(response, sizeof(response));
}

void
outbox_amqp_put_tune_ok(OutboxBuffer *buffer, uint16_t channel_max,
						uint32_t frame_max, uint16_t heartbeat)
{
	amqp_connection_tune_ok_t method = {channel_max, frame_max, heartbeat};

	put_method(buffer, 0, AMQP_CONNECTION_TUNE_OK_METHOD, &method);
}

void
outbox_amqp_put_open(OutboxBuffer *buffer, const char *vhost)
{
	amqp_connection_open_t method;

	memset(&method, 0, sizeof(method));
	method.virtual_host = bytes(vhost, strnlen(vhost, OUTBOX_URI_NAME_MAX));
	put_method(buffer, 0, AMQP_CONNECTION_OPEN_METHOD, &method);
}

void
outbox_amqp_put_channel_open(OutboxBuffer *buffer)
{
	amqp_channel_open_t method;

	memset(&method, 0, sizeof(method));
	put_method(buffer, OUTBOX_AMQP_CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &method);
}

void
outbox_amqp_put_confirm_select(OutboxBuffer *buffer)
{
	amqp_confirm_select_t method = {0};

	put_method(buffer, OUTBOX_AMQP_CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &method);
}

void
outbox_amqp_put_channel_flow_ok(OutboxBuffer *buffer, bool active)
{
	amqp_channel_flow_ok_t method = {active};

	put_method(buffer, OUTBOX_AMQP_CHANNEL, AMQP_CHANNEL_FLOW_OK_METHOD, &method);
}

void
outbox_amqp_put_channel_close_ok(OutboxBuffer *buffer)
{
	amqp_channel_close_ok_t method = {0};

	put_method(buffer, OUTBOX_AMQP_CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &method);
}

void
outbox_amqp_put_connection_close(OutboxBuffer *buffer)
{
	amqp_connection_close_t method;

	memset(&method, 0, sizeof(method));
	method.reply_code = AMQP_REPLY_SUCCESS;
	method.reply_text = bytes("bye", 3);
	put_method(buffer, 0, AMQP_CONNECTION_CLOSE_METHOD, &method);
}

void
outbox_amqp_put_connection_close_ok(OutboxBuffer *buffer)
{
	amqp_connection_close_ok_t method = {0};

	put_method(buffer, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &method);
}

void
outbox_amqp_put_heartbeat(OutboxBuffer *buffer)
{
	char	   *at = outbox_buffer_reserve(buffer, OUTBOX_AMQP_OVERHEAD);

	put_prefix(at, AMQP_FRAME_HEARTBEAT, 0, 0);
	at[FRAME_PREFIX] = (char) AMQP_FRAME_END;
	buffer->end += OUTBOX_AMQP_OVERHEAD;
}

/* Write the content header frame to `at`; 0 if it is larger than `room`. */
static size_t
header_frame(char *at, size_t room, const amqp_basic_properties_t *properties,
			 size_t body_len)
{
	char	   *payload = at + FRAME_PREFIX;
	size_t		fixed = OUTBOX_AMQP_OVERHEAD + HEADER_FIXED;
	int			len;

	if (room < fixed)
		return 0;
	put_number(payload, AMQP_BASIC_CLASS, 2);
	put_number(payload + 2, 0, 2);	/* weight */
	put_number(payload + 4, body_len, 8);
	len = amqp_encode_properties(AMQP_BASIC_CLASS,
								 unconstify(amqp_basic_properties_t *, properties),
								 bytes(payload + HEADER_FIXED, room - fixed));
	if (len < 0)
		return 0;
	put_prefix(at, AMQP_FRAME_HEADER, OUTBOX_AMQP_CHANNEL,
			   (size_t) len + HEADER_FIXED);
	payload[HEADER_FIXED + len] = (char) AMQP_FRAME_END;
	return (size_t) len + fixed;
}

static char *
body_frame(char *at, const char *body, size_t len)
{
	put_prefix(at, AMQP_FRAME_BODY, OUTBOX_AMQP_CHANNEL, len);
	memcpy(at + FRAME_PREFIX, body, len);
	at[FRAME_PREFIX + len] = (char) AMQP_FRAME_END;
	return at + len + OUTBOX_AMQP_OVERHEAD;
}

/*
 * All frames are written before `end` moves, so that a header that turns out
 * too large leaves no basic.publish without content behind.
 */
bool
outbox_amqp_put_publish(OutboxBuffer *buffer, uint32_t frame_max,
						OutboxBytes exchange, OutboxBytes routing_key,
						bool mandatory,
						const struct amqp_basic_properties_t_ *properties,
						const char *body, size_t body_len)
{
	size_t		piece_max = frame_max - OUTBOX_AMQP_OVERHEAD;
	size_t		pieces = (body_len + piece_max - 1) / piece_max;
	size_t		len;
	char	   *start;
	char	   *at;
	amqp_basic_publish_t method;

	start = at = outbox_buffer_reserve(buffer, METHOD_ROOM + frame_max + body_len +
									   pieces * OUTBOX_AMQP_OVERHEAD);

	method.ticket = 0;
	method.exchange = bytes(exchange.data, exchange.len);
	method.routing_key = bytes(routing_key.data, routing_key.len);
	method.mandatory = mandatory;
	method.immediate = false;
	len = method_frame(at, METHOD_ROOM, OUTBOX_AMQP_CHANNEL,
					   AMQP_BASIC_PUBLISH_METHOD, &method);
	if (len == 0)
		return false;
	at += len;

	len = header_frame(at, frame_max, properties, body_len);
	if (len == 0)
		return false;
	at += len;

	while (body_len > 0)
	{
		size_t		piece = Min(body_len, piece_max);

		at = body_frame(at, body, piece);
		body += piece;
		body_len -= piece;
	}
	buffer->end += (size_t) (at - start);
	return true;
}

int
outbox_amqp_content_header_size(const struct amqp_basic_properties_t_ *properties,
								uint32_t frame_max)
{
	char		few[PROPERTIES_TRY];
	char	   *many;
	size_t		len;

	len = header_frame(few, Min(frame_max, sizeof(few)), properties, 0);
	if (len == 0 && frame_max > sizeof(few))
	{
		many = palloc(frame_max);
		len = header_frame(many, frame_max, properties, 0);
		pfree(many);
	}
	return len > 0 ? (int) len : -1;
}
