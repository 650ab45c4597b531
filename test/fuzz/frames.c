/*
 * frames.c
 *		Owns the bytes that a peer sends: every frame that RabbitMQ has for a
 *		publisher, and those that it does not have.
 *
 *		Written by hand and not with the codec under test.
 */
#include "pgcompat.h"

#include "frames.h"

void
put(Bytes *out, const void *data, size_t len)
{
	if (out->size - out->len < len)
	{
		out->size = (out->len + len) * 2;
		out->data = realloc(out->data, out->size);
		if (out->data == NULL)
			abort();
	}
	if (len > 0)
		memcpy(out->data + out->len, data, len);
	out->len += len;
}

void
put_number(Bytes *out, uint64 value, int width)
{
	unsigned char number[8];

	for (int i = 0; i < width; i++)
		number[i] = (unsigned char) (value >> (8 * (width - 1 - i)));
	put(out, number, width);
}

void
put_text(Bytes *out, const char *text, int length_bytes)
{
	put_number(out, strlen(text), length_bytes);
	put(out, text, strlen(text));
}

void
put_random(Bytes *out, Random *random, size_t len)
{
	for (size_t i = 0; i < len; i++)
		put_number(out, random_bits(random) & 0xFF, 1);
}

/* A short string of any bytes. */
static void
put_odd_text(Bytes *out, Random *random)
{
	size_t		len = one_in(random, 3) ? 255 : random_below(random, 40);

	put_number(out, len, 1);
	put_random(out, random, len);
}

size_t
frame_begin(Bytes *out, int type, int channel)
{
	put_number(out, type, 1);
	put_number(out, channel, 2);
	put_number(out, 0, 4);
	return out->len;
}

size_t
method_begin(Bytes *out, int channel, int class_id, int method_id)
{
	size_t		begun = frame_begin(out, 1, channel);

	put_number(out, class_id, 2);
	put_number(out, method_id, 2);
	return begun;
}

static void
set_number(Bytes *out, size_t at, uint32 value)
{
	for (int i = 0; i < 4; i++)
		out->data[at + i] = (unsigned char) (value >> (8 * (3 - i)));
}

void
frame_end(Bytes *out, size_t begun)
{
	set_number(out, begun - 4, (uint32) (out->len - begun));
	put_number(out, 0xCE, 1);
}

/* ---- tables ---- */

/* The entries of a table of tables: the length of each level is known beforehand. */
static void
put_nested_entries(Bytes *out, int depth)
{
	for (int level = depth; level > 0; level--)
	{
		put_text(out, "t", 1);
		put_number(out, 'F', 1);
		put_number(out, (level - 1) * 7, 4);
	}
}

void
put_nested_table(Bytes *out, int depth)
{
	put_number(out, depth * 7, 4);
	put_nested_entries(out, depth);
}

static void
put_value(Bytes *out, Random *random)
{
	static const char kinds[] = "VtbBsuIifDlLdTSxAF";
	static const int sizes[] = {0, 1, 1, 1, 2, 2, 4, 4, 4, 5, 8, 8, 8, 8, -1, -1, -1, -1};
	int			which = (int) random_below(random, sizeof(kinds) - 1);

	put_number(out, kinds[which], 1);
	if (sizes[which] >= 0)
		put_random(out, random, sizes[which]);
	else
	{
		size_t		len = random_below(random, 60);

		put_number(out, len, 4);
		put_random(out, random, len);
	}
}

static void
put_entries(Bytes *out, Random *random)
{
	for (uint64 n = random_below(random, 6); n > 0; n--)
	{
		put_text(out, one_in(random, 4) ? "x-outbox-id" : "header", 1);
		put_value(out, random);
	}
}

static void
put_table(Bytes *out, Random *random)
{
	size_t		at = out->len;

	put_number(out, 0, 4);
	put_entries(out, random);
	set_number(out, at, (uint32) (out->len - at - 4));
}

/* ---- what a broker says ---- */

void
put_start(Bytes *out, Random *random, int depth)
{
	size_t		begun = method_begin(out, 0, 10, 10);

	put_number(out, 9, 2);
	if (depth > 0)
		put_nested_table(out, depth);
	else
		put_table(out, random);
	put_text(out, one_in(random, 2) ? "PLAIN AMQPLAIN" : "EXTERNAL RABBIT-CR-DEMO PLAIN", 4);
	put_text(out, "en_US", 4);
	frame_end(out, begun);
}

void
put_tune(Bytes *out, const Tune *tune)
{
	size_t		begun = method_begin(out, 0, 10, 30);

	put_number(out, tune->channel_max, 2);
	put_number(out, tune->frame_max, 4);
	put_number(out, tune->heartbeat, 2);
	frame_end(out, begun);
}

void
put_answer(Bytes *out, Random *random, int which, const Tune *tune)
{
	size_t		begun;

	switch (which)
	{
		case 0:
			put_start(out, random, 0);
			return;
		case 1:
			put_tune(out, tune);
			return;
		case 2:
			begun = method_begin(out, 0, 10, 41);
			put_text(out, "", 1);
			break;
		case 3:
			begun = method_begin(out, 1, 20, 11);
			put_text(out, "", 4);
			break;
		default:
			begun = method_begin(out, 1, 85, 11);
	}
	frame_end(out, begun);
}

void
put_answer_to_publish(Bytes *out, bool ack, uint64 tag, bool multiple)
{
	size_t		begun = method_begin(out, 1, 60, ack ? 80 : 120);

	put_number(out, tag, 8);
	put_number(out, multiple, 1);
	frame_end(out, begun);
}

void
put_close(Bytes *out, Random *random, int channel, int code, bool odd)
{
	size_t		begun = method_begin(out, channel, channel == 0 ? 10 : 20, channel == 0 ? 50 : 40);

	put_number(out, code, 2);
	if (odd)
		put_odd_text(out, random);
	else
		put_text(out, "NOT_FOUND - no exchange 'ghost' in vhost '/'", 1);
	put_number(out, 60, 2);
	put_number(out, 40, 2);
	frame_end(out, begun);
}

void
put_blocked(Bytes *out, Random *random, bool blocked)
{
	size_t		begun = method_begin(out, 0, 10, blocked ? 60 : 61);

	if (blocked)
		put_odd_text(out, random);
	frame_end(out, begun);
}

void
put_flow(Bytes *out, bool active)
{
	size_t		begun = method_begin(out, 1, 20, 20);

	put_number(out, active, 1);
	frame_end(out, begun);
}

void
put_heartbeat(Bytes *out)
{
	frame_end(out, frame_begin(out, 8, 0));
}

static void
put_body(Bytes *out, Random *random, size_t body, uint32 frame_max)
{
	while (body > 0)
	{
		size_t		most = Min(body, frame_max - 8);
		size_t		len = one_in(random, 3) ? random_from(random, 1, most) : most;
		size_t		begun = frame_begin(out, 3, 1);

		for (size_t i = 0; i < len; i++)
			put_number(out, i, 1);
		frame_end(out, begun);
		body -= len;
	}
}

static void
put_content_header(Bytes *out, int64 id, uint64 body, int depth)
{
	size_t		begun = frame_begin(out, 2, 1);
	size_t		table;

	put_number(out, 60, 2);
	put_number(out, 0, 2);
	put_number(out, body, 8);
	put_number(out, 0xB000, 2); /* content type, headers, delivery mode */
	put_text(out, "text/plain", 1);
	table = out->len;
	put_number(out, 0, 4);
	put_nested_entries(out, depth);
	if (id != 0)
	{
		put_text(out, "x-outbox-id", 1);
		put_number(out, 'l', 1);
		put_number(out, (uint64) id, 8);
	}
	set_number(out, table, (uint32) (out->len - table - 4));
	put_number(out, 2, 1);
	frame_end(out, begun);
}

void
put_return(Bytes *out, Random *random, int64 id, size_t body, uint32 frame_max, int depth)
{
	size_t		begun = method_begin(out, 1, 60, 50);

	put_number(out, 312, 2);
	put_text(out, "NO_ROUTE", 1);
	put_text(out, "", 1);
	put_odd_text(out, random);
	frame_end(out, begun);
	put_content_header(out, id, body, Min(depth, ((int) frame_max - 100) / 7));
	put_body(out, random, body, frame_max);
}

void
put_any(Bytes *out, Random *random, uint64 tags)
{
	Tune		tune = {0, 131072, 15};
	size_t		begun;

	switch (random_below(random, 12))
	{
		case 0:
		case 1:
		case 2:
			put_answer_to_publish(out, !one_in(random, 4), random_below(random, tags + 1),
								  one_in(random, 3));
			break;
		case 3:
			put_return(out, random, (int64) random_from(random, 0, 10), random_below(random, 30),
					   4096, one_in(random, 2) ? 30 : 0);
			break;
		case 4:
			put_close(out, random, (int) random_below(random, 2),
					  (int) random_from(random, 300, 600), true);
			break;
		case 5:
			put_blocked(out, random, one_in(random, 2));
			break;
		case 6:
			put_flow(out, one_in(random, 2));
			break;
		case 7:
			put_answer(out, random, (int) random_below(random, HANDSHAKE_ANSWERS), &tune);
			break;
		case 8:					/* a content header of anything */
			begun = frame_begin(out, 2, 1);
			put_number(out, 60, 2);
			put_number(out, 0, 2);
			put_number(out, random_below(random, 100), 8);
			put_number(out, 0x2000, 2);
			put_table(out, random);
			frame_end(out, begun);
			break;
		case 9:
			put_body(out, random, random_from(random, 1, 50), 4096);
			break;
		case 10:				/* the farewells */
			begun = one_in(random, 2) ? method_begin(out, 0, 10, 51) : method_begin(out, 1, 20, 41);
			frame_end(out, begun);
			break;
		default:
			put_heartbeat(out);
	}
}

/* ---- what no broker says ---- */

void
put_oversized(Bytes *out, Random *random, uint32 frame_max)
{
	static const int types[] = {1, 2, 3};
	uint32		size;

	switch (random_below(random, 3))
	{
		case 0:
			size = frame_max - 8 + 1;
			break;
		case 1:
			size = PG_UINT32_MAX - (uint32) random_below(random, 16);
			break;
		default:
			size = (uint32) random_from(random, frame_max, PG_UINT32_MAX);
	}
	put_number(out, types[random_below(random, 3)], 1);
	put_number(out, 1, 2);
	put_number(out, size, 4);
	put_random(out, random, random_below(random, 3000));
}

void
put_without_end(Bytes *out, Random *random)
{
	put_any(out, random, 5);
	out->data[out->len - 1] ^= (unsigned char) random_from(random, 1, 255);
}

void
put_wrong_channel(Bytes *out, Random *random)
{
	size_t		begun;

	switch (random_below(random, 5))
	{
		case 0:					/* a channel that was never opened */
			begun = method_begin(out, (int) random_from(random, 2, 65535), 60, 80);
			put_number(out, 1, 8);
			put_number(out, 0, 1);
			break;
		case 1:					/* an ack on the channel of the connection */
			begun = method_begin(out, 0, 60, 80);
			put_number(out, 1, 8);
			put_number(out, 0, 1);
			break;
		case 2:					/* the connection's business on the other one */
			begun = method_begin(out, 1, 10, 61);
			break;
		case 3:
			begun = frame_begin(out, 8, 1);
			break;
		default:
			begun = frame_begin(out, one_in(random, 2) ? 2 : 3, 0);
			put_random(out, random, 20);
	}
	frame_end(out, begun);
}

/* The frame is as long as it says; what is in it claims to be longer, or is shorter. */
void
put_absurd_length(Bytes *out, Random *random)
{
	static const uint32 lengths[] = {0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 200000, 21};
	uint32		length = lengths[random_below(random, 6)];
	size_t		begun;

	switch (random_below(random, 8))
	{
		case 0:					/* server properties */
			begun = method_begin(out, 0, 10, 10);
			put_number(out, 9, 2);
			put_number(out, length, 4);
			put_random(out, random, 20);
			break;
		case 1:					/* mechanisms */
			begun = method_begin(out, 0, 10, 10);
			put_number(out, 9, 2);
			put_number(out, 0, 4);
			put_number(out, length, 4);
			put_random(out, random, 20);
			break;
		case 2:
			begun = method_begin(out, 1, 20, 11);
			put_number(out, length, 4);
			put_random(out, random, 20);
			break;
		case 3:
			begun = method_begin(out, 0, 10, 50);
			put_number(out, 320, 2);
			put_number(out, 255, 1);
			put_random(out, random, 20);
			break;
		case 4:					/* an ack cut short, or too long */
			begun = method_begin(out, 1, 60, 80);
			put_number(out, 1, 8);
			if (one_in(random, 2))
				put_number(out, 1, 2);
			break;
		case 5:					/* headers of a message */
			begun = frame_begin(out, 2, 1);
			put_number(out, 60, 2);
			put_number(out, 0, 2);
			put_number(out, 10, 8);
			put_number(out, 0x2000, 2);
			put_number(out, length, 4);
			put_random(out, random, 20);
			break;
		case 6:					/* a value in the headers of a message */
			begun = frame_begin(out, 2, 1);
			put_number(out, 60, 2);
			put_number(out, 0, 2);
			put_number(out, 10, 8);
			put_number(out, 0x2000, 2);
			put_number(out, 27, 4);
			put_text(out, "a", 1);
			put_number(out, 'S', 1);
			put_number(out, length, 4);
			put_random(out, random, 20);
			break;
		default:				/* a method that is not even there */
			begun = frame_begin(out, 1, (int) random_below(random, 2));
			put_random(out, random, random_below(random, 4));
	}
	frame_end(out, begun);
}

void
put_unexpected_method(Bytes *out, Random *random)
{
	static const int methods[][3] = {
		{0, 10, 51}, {1, 20, 41},	/* close-ok: we never close in order */
		{0, 10, 20}, {0, 10, 70}, {0, 10, 40}, {0, 20, 20},
		{1, 60, 60}, {1, 60, 31}, {1, 60, 71}, {1, 20, 10}, {1, 90, 11}, {1, 0, 0}
	};
	const int  *method = methods[random_below(random, lengthof(methods))];

	frame_end(out, method_begin(out, method[0], method[1], method[2]));
}

void
mutate(Bytes *out, size_t from, Random *random)
{
	for (uint64 n = random_from(random, 1, 4); n > 0 && out->len > from; n--)
	{
		size_t		at = random_from(random, from, out->len - 1);

		/* the fields of the frame's prefix are where it hurts */
		if (one_in(random, 3))
			at = from + random_below(random, Min(12, out->len - from));
		switch (random_below(random, 5))
		{
			case 0:
				out->data[at] ^= (unsigned char) (1 << random_below(random, 8));
				break;
			case 1:
				out->data[at] = (unsigned char) random_bits(random);
				break;
			case 2:
				out->data[at] = one_in(random, 2) ? 0xFF : 0;
				break;
			case 3:
				memmove(out->data + at, out->data + at + 1, out->len - at - 1);
				out->len--;
				break;
			default:
				put_number(out, 0, 1);
				memmove(out->data + at + 1, out->data + at, out->len - 1 - at);
				out->data[at] = (unsigned char) random_bits(random);
		}
	}
}

void
put_fuzzer_input(Bytes *out, Random *random)
{
	put_random(out, random, 1); /* the state of the connection */
	for (uint64 frames = random_below(random, 12); frames > 0; frames--)
	{
		size_t		from = out->len;

		switch (random_below(random, 8))
		{
			case 0:
				put_absurd_length(out, random);
				break;
			case 1:
				put_wrong_channel(out, random);
				break;
			case 2:
				put_random(out, random, random_below(random, 50));
				break;
			default:
				put_any(out, random, 9);
		}
		if (one_in(random, 3))
			mutate(out, from, random);
	}
}
