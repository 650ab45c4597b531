/*
 * amqp_decode.c
 *		One frame of what the broker sends, from bytes to OutboxFrame.
 *
 *		The broker's answers pass through here on their way to confirm.c. The
 *		bytes come from the network and are believed in nothing: every length
 *		is checked against the frame before it is used, and the frame against
 *		the negotiated limit before it is waited for.
 *
 *		By hand rather than with librabbitmq, because all versions up to 0.17
 *		can be made to read or write out of bounds by a hostile peer, and 0.18
 *		is in no stable distribution; and because a dozen methods of fixed
 *		shape are little. Never here: PostgreSQL, librabbitmq, allocation,
 *		recursion, I/O.
 */
#include <string.h>

#include "amqp_codec.h"

#define FRAME_METHOD	1
#define FRAME_HEADER	2
#define FRAME_BODY		3
#define FRAME_HEARTBEAT	8
#define FRAME_END		0xCE
#define FRAME_PREFIX	7		/* type, channel, size */

#define CLASS_BASIC		60
#define METHOD(class_id, method_id) (((uint32_t) (class_id) << 16) | (method_id))

/* What is left of a frame's payload; `bad` sticks once a length did not fit. */
typedef struct Cursor
{
	const uint8_t *at;
	size_t		left;
	bool		bad;
} Cursor;

static const uint8_t *
take(Cursor *in, size_t len)
{
	const uint8_t *at = in->at;

	if (in->bad || len > in->left)
	{
		in->bad = true;
		in->left = 0;
		return NULL;
	}
	in->at += len;
	in->left -= len;
	return at;
}

/* Big-endian number of 1 to 8 bytes; 0 if they are not there. */
static uint64_t
take_number(Cursor *in, size_t bytes)
{
	const uint8_t *at = take(in, bytes);
	uint64_t	value = 0;

	if (at == NULL)
		return 0;
	for (size_t i = 0; i < bytes; i++)
		value = value << 8 | at[i];
	return value;
}

static Cursor
take_part(Cursor *in, size_t length_bytes)
{
	size_t		len = (size_t) take_number(in, length_bytes);
	Cursor		part = {NULL, 0, false};

	part.at = take(in, len);
	if (part.at != NULL)
		part.left = len;
	else
		part.bad = true;
	return part;
}

/*
 * Length of the printable UTF-8 character at src, 0 if there is none.  Control
 * characters, those of U+0080 to U+009F included, do not belong into a log.
 */
static size_t
printable_char(const uint8_t *src, size_t len)
{
	size_t		need;
	uint32_t	c = src[0];

	if (c < 0x80)
		return c >= 0x20 && c != 0x7F;
	if (c < 0xC2 || c > 0xF4)
		return 0;
	need = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
	if (need > len)
		return 0;
	c &= 0xFF >> (need + 1);
	for (size_t i = 1; i < need; i++)
	{
		if ((src[i] & 0xC0) != 0x80)
			return 0;
		c = c << 6 | (src[i] & 0x3F);
	}
	if (c < 0xA0 || (need == 3 && c < 0x800) || (need == 4 && c < 0x10000) ||
		(c >= 0xD800 && c <= 0xDFFF) || c > 0x10FFFF)
		return 0;
	return need;
}

void
outbox_amqp_printable(char *dst, size_t size, const void *src, size_t len)
{
	const uint8_t *from = src;
	size_t		used = 0;

	while (len > 0)
	{
		size_t		n = printable_char(from, len);
		size_t		step = n > 0 ? n : 1;

		if (used + step >= size)
			break;
		if (n > 0)
			memcpy(dst + used, from, n);
		else
			dst[used] = '?';
		used += step;
		from += step;
		len -= step;
	}
	dst[used] = '\0';
}

static void
take_text(Cursor *in, OutboxFrame *frame)
{
	Cursor		text = take_part(in, 1);

	if (!text.bad)
		outbox_amqp_printable(frame->text, sizeof(frame->text), text.at, text.left);
}

static void
malformed(OutboxFrame *frame, const char *why)
{
	frame->type = OUTBOX_FRAME_MALFORMED;
	frame->length = 0;
	frame->error = why;
}

/* Is `word` in a list separated by spaces? */
static bool
list_has(const Cursor *list, const char *word)
{
	size_t		len = strlen(word);
	size_t		i = 0;

	while (i < list->left)
	{
		size_t		begin = i;

		while (i < list->left && list->at[i] != ' ')
			i++;
		if (i - begin == len && memcmp(list->at + begin, word, len) == 0)
			return true;
		i++;
	}
	return false;
}

static void
decode_start(Cursor *in, OutboxFrame *frame)
{
	uint64_t	version = take_number(in, 2);
	Cursor		mechanisms;

	(void) take_part(in, 4);	/* server properties: nothing depends on them */
	mechanisms = take_part(in, 4);
	(void) take_part(in, 4);	/* locales */
	if (in->bad)
		return;
	if (version != 9)			/* major 0, minor 9 */
	{
		malformed(frame, "the server speaks another version of AMQP than 0-9-1");
		return;
	}
	frame->type = OUTBOX_FRAME_START;
	frame->plain = list_has(&mechanisms, "PLAIN");
	frame->external = list_has(&mechanisms, "EXTERNAL");
}

static void
decode_close(Cursor *in, OutboxFrame *frame, OutboxFrameType type)
{
	frame->type = type;
	frame->code = (uint16_t) take_number(in, 2);
	take_text(in, frame);
	(void) take_number(in, 4);	/* the method that failed: its class and its number */
}

/* Methods of the connection itself, on channel 0. */
static void
decode_connection_method(uint32_t method, Cursor *in, OutboxFrame *frame)
{
	switch (method)
	{
		case METHOD(10, 10):
			decode_start(in, frame);
			break;
		case METHOD(10, 30):
			frame->type = OUTBOX_FRAME_TUNE;
			frame->channel_max = (uint16_t) take_number(in, 2);
			frame->frame_max = (uint32_t) take_number(in, 4);
			frame->heartbeat = (uint16_t) take_number(in, 2);
			break;
		case METHOD(10, 41):
			frame->type = OUTBOX_FRAME_OPEN_OK;
			(void) take_part(in, 1);	/* reserved */
			break;
		case METHOD(10, 50):
			decode_close(in, frame, OUTBOX_FRAME_CONNECTION_CLOSE);
			break;
		case METHOD(10, 51):
			frame->type = OUTBOX_FRAME_CONNECTION_CLOSE_OK;
			break;
		case METHOD(10, 60):
			frame->type = OUTBOX_FRAME_BLOCKED;
			take_text(in, frame);
			break;
		case METHOD(10, 61):
			frame->type = OUTBOX_FRAME_UNBLOCKED;
			break;
		default:
			malformed(frame, "method not expected on channel 0");
	}
}

/* Methods of the channel that publishes. */
static void
decode_channel_method(uint32_t method, Cursor *in, OutboxFrame *frame)
{
	switch (method)
	{
		case METHOD(20, 11):
			frame->type = OUTBOX_FRAME_CHANNEL_OPEN_OK;
			(void) take_part(in, 4);	/* reserved */
			break;
		case METHOD(20, 20):
			frame->type = OUTBOX_FRAME_CHANNEL_FLOW;
			frame->active = take_number(in, 1) & 1;
			break;
		case METHOD(20, 40):
			decode_close(in, frame, OUTBOX_FRAME_CHANNEL_CLOSE);
			break;
		case METHOD(20, 41):
			frame->type = OUTBOX_FRAME_CHANNEL_CLOSE_OK;
			break;
		case METHOD(85, 11):
			frame->type = OUTBOX_FRAME_CONFIRM_SELECT_OK;
			break;
		case METHOD(CLASS_BASIC, 50):
			frame->type = OUTBOX_FRAME_RETURN;
			frame->code = (uint16_t) take_number(in, 2);
			take_text(in, frame);
			(void) take_part(in, 1);	/* exchange */
			(void) take_part(in, 1);	/* routing key */
			break;
		case METHOD(CLASS_BASIC, 80):
		case METHOD(CLASS_BASIC, 120):
			frame->type = method == METHOD(CLASS_BASIC, 80) ?
				OUTBOX_FRAME_ACK : OUTBOX_FRAME_NACK;
			frame->delivery_tag = take_number(in, 8);
			frame->multiple = take_number(in, 1) & 1;
			break;
		default:
			malformed(frame, "method not expected on the publishing channel");
	}
}

static void
decode_method(uint16_t channel, Cursor *in, OutboxFrame *frame)
{
	uint32_t	method = (uint32_t) take_number(in, 4);

	if (in->bad)
		return;
	if (channel == 0)
		decode_connection_method(method, in, frame);
	else
		decode_channel_method(method, in, frame);
}

/* Bytes of a field value behind its type, for types of fixed size; -1: none of them. */
static int
field_size(uint8_t kind)
{
	switch (kind)
	{
		case 'V':
			return 0;
		case 't':
		case 'b':
		case 'B':
			return 1;
		case 's':
		case 'u':
			return 2;
		case 'I':
		case 'i':
		case 'f':
			return 4;
		case 'D':
			return 5;
		case 'l':
		case 'L':
		case 'd':
		case 'T':
			return 8;
		default:
			return -1;
	}
}

/* The value of an integer field, sign-extended; false if it is no integer. */
static bool
field_integer(uint8_t kind, const uint8_t *at, int64_t *value)
{
	Cursor		in = {at, 8, false};

	switch (kind)
	{
		case 'b':
			*value = (int8_t) take_number(&in, 1);
			return true;
		case 'B':
			*value = (int64_t) take_number(&in, 1);
			return true;
		case 's':
			*value = (int16_t) take_number(&in, 2);
			return true;
		case 'u':
			*value = (int64_t) take_number(&in, 2);
			return true;
		case 'I':
			*value = (int32_t) take_number(&in, 4);
			return true;
		case 'i':
			*value = (int64_t) take_number(&in, 4);
			return true;
		case 'l':
			*value = (int64_t) take_number(&in, 8);
			return true;
		case 'L':
			*value = (int64_t) take_number(&in, 8);
			return *value >= 0;
		default:
			return false;
	}
}

/*
 * Look for x-outbox-id among the headers. Nested tables, arrays and strings
 * are skipped by their length, so depth costs nothing.
 */
static bool
decode_headers(Cursor *table, OutboxFrame *frame)
{
	static const char name[] = "x-outbox-id";

	while (table->left > 0)
	{
		Cursor		key = take_part(table, 1);
		uint8_t		kind = (uint8_t) take_number(table, 1);
		int			size = field_size(kind);

		if (table->bad)
			return false;
		if (size >= 0)
		{
			const uint8_t *value = take(table, (size_t) size);

			if (value != NULL && !frame->has_id &&
				key.left == sizeof(name) - 1 &&
				memcmp(key.at, name, key.left) == 0)
				frame->has_id = field_integer(kind, value, &frame->id);
		}
		else if (kind == 'S' || kind == 'x' || kind == 'A' || kind == 'F')
			(void) take_part(table, 4);
		else
			return false;
		if (table->bad)
			return false;
	}
	return true;
}

static void
decode_content_header(Cursor *in, OutboxFrame *frame)
{
	/* the 14 properties in order: s = shortstr, t = table, or a number of bytes */
	static const char kinds[] = "sst11ssss8ssss";
	uint64_t	class_id = take_number(in, 2);
	uint16_t	flags;

	(void) take_number(in, 2);	/* weight */
	frame->body_size = take_number(in, 8);
	flags = (uint16_t) take_number(in, 2);
	if (class_id != CLASS_BASIC || (flags & 3) != 0)
		in->bad = true;
	for (int i = 0; kinds[i] != '\0' && !in->bad; i++)
	{
		if ((flags & (0x8000 >> i)) == 0)
			continue;
		if (kinds[i] == 's')
			(void) take_part(in, 1);
		else if (kinds[i] == 't')
		{
			Cursor		table = take_part(in, 4);

			if (table.bad || !decode_headers(&table, frame))
				in->bad = true;
		}
		else
			(void) take(in, (size_t) (kinds[i] - '0'));
	}
	frame->type = OUTBOX_FRAME_CONTENT_HEADER;
}

/* All but the text, which would cost more to clear than an ack to decode. */
static void
frame_clear(OutboxFrame *frame)
{
	frame->type = OUTBOX_FRAME_INCOMPLETE;
	frame->length = 0;
	frame->delivery_tag = 0;
	frame->multiple = frame->active = false;
	frame->code = 0;
	frame->text[0] = '\0';
	frame->channel_max = frame->heartbeat = 0;
	frame->frame_max = 0;
	frame->plain = frame->external = frame->has_id = false;
	frame->body_size = 0;
	frame->id = 0;
	frame->error = NULL;
}

/* Is what has arrived of a frame's first seven bytes acceptable? */
static const char *
check_prefix(const uint8_t *data, size_t len, uint32_t frame_max)
{
	uint8_t		type = data[0];
	Cursor		in = {data + 1, len - 1, false};
	uint64_t	channel;
	uint64_t	size;

	if (type == 'A')			/* "AMQP" and a version: how servers decline ours */
		return "the server speaks another version of AMQP than 0-9-1";
	if (type == 0x15)			/* a TLS alert */
		return "the server expects TLS";
	if (type != FRAME_METHOD && type != FRAME_HEADER && type != FRAME_BODY &&
		type != FRAME_HEARTBEAT)
		return "not an AMQP 0-9-1 frame";
	if (len < FRAME_PREFIX)
		return NULL;

	channel = take_number(&in, 2);
	size = take_number(&in, 4);
	if (channel > (type == FRAME_HEARTBEAT ? 0 : OUTBOX_AMQP_CHANNEL))
		return "frame on a channel that was never opened";
	if (channel == 0 && (type == FRAME_HEADER || type == FRAME_BODY))
		return "content on channel 0";
	if (size + OUTBOX_AMQP_OVERHEAD > frame_max)
		return "frame larger than negotiated";
	if (type == FRAME_HEARTBEAT && size != 0)
		return "heartbeat with content";
	return NULL;
}

void
outbox_amqp_decode(const uint8_t *data, size_t len, uint32_t frame_max,
				   OutboxFrame *frame)
{
	const char *error;
	Cursor		in;
	uint16_t	channel;
	size_t		size;

	frame_clear(frame);
	if (len == 0)
		return;
	error = check_prefix(data, len, frame_max);
	if (error != NULL)
	{
		malformed(frame, error);
		return;
	}
	if (len < FRAME_PREFIX)
		return;

	in = (Cursor) {data + 1, FRAME_PREFIX - 1, false};
	channel = (uint16_t) take_number(&in, 2);
	size = (size_t) take_number(&in, 4);
	if (len - FRAME_PREFIX < size + 1)
		return;					/* incomplete; size was checked, no overflow */
	if (data[FRAME_PREFIX + size] != FRAME_END)
	{
		malformed(frame, "frame without its end mark");
		return;
	}

	frame->length = size + OUTBOX_AMQP_OVERHEAD;
	in = (Cursor) {data + FRAME_PREFIX, size, false};
	switch (data[0])
	{
		case FRAME_METHOD:
			decode_method(channel, &in, frame);
			break;
		case FRAME_HEADER:
			decode_content_header(&in, frame);
			break;
		case FRAME_BODY:
			frame->type = OUTBOX_FRAME_CONTENT_BODY;
			frame->body_size = size;
			(void) take(&in, size);
			break;
		default:
			frame->type = OUTBOX_FRAME_HEARTBEAT;
	}
	if (frame->type != OUTBOX_FRAME_MALFORMED && (in.bad || in.left != 0))
		malformed(frame, "frame whose content does not fit its length");
}
