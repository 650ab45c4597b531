/*
 * peer.c
 *		Owns the broker of a conversation. On each connection it talks like
 *		RabbitMQ until, on a hostile one, it has answered so and so often; then
 *		it strikes, and goes on as if nothing had happened, or falls silent, or
 *		leaves.
 *
 *		Whatever it does itself, it holds the worker to the protocol: every
 *		byte that arrives must be a frame that fits, messages must come whole,
 *		with no frame in their midst that RabbitMQ would not allow there, and
 *		with the content they were given. Where the worker cannot but leave,
 *		the peer watches whether it does.
 */
#include "pgcompat.h"

#include "frames.h"
#include "peer.h"
#include "wire.h"

#define MS(ms) ((TimestampTz) (ms) * 1000)
#define PATIENCE	MS(3600 * 1000)	/* nobody stays longer with a peer that is of no use */
#define TURNS_TO_LEAVE 4

const char *const hostility_names[KINDS] = {
	[KIND_NONE] = "none",
	[KIND_REFUSES_TCP] = "connect refused",
	[KIND_IGNORES_TCP] = "connect not answered",
	[KIND_GARBAGE] = "garbage",
	[KIND_MUTATED] = "mutated frames",
	[KIND_TRUNCATED] = "truncated frame",
	[KIND_OVERSIZED] = "oversized frame",
	[KIND_NO_END_MARK] = "no end mark",
	[KIND_WRONG_CHANNEL] = "wrong channel",
	[KIND_ACK_NEVER_SENT] = "ack for a tag never sent",
	[KIND_ACK_TWICE] = "ack twice",
	[KIND_RETURN_UNKNOWN] = "return never asked for",
	[KIND_ABSURD_LENGTH] = "absurd length in a frame",
	[KIND_NESTED_TABLES] = "nested tables",
	[KIND_OUT_OF_TURN] = "handshake out of turn",
	[KIND_UNEXPECTED] = "unexpected method",
	[KIND_EAGER] = "answers before it is asked",
	[KIND_TUNE] = "absurd tune",
	[KIND_CLOSES_CONNECTION] = "connection.close",
	[KIND_CLOSES_CHANNEL] = "channel.close",
	[KIND_REFUSES_MESSAGES] = "returns and nacks",
	[KIND_BLOCKS] = "blocked, unblocked, flow",
	[KIND_FLOOD] = "flood of what needs an answer",
	[KIND_TRICKLE] = "byte by byte",
	[KIND_DEAF] = "does not read",
	[KIND_SILENT] = "silence",
	[KIND_END_OF_FILE] = "end of file",
	[KIND_RESET] = "reset",
	[KIND_STORM] = "storm of valid frames",
};

/* What comes next from a worker, whoever it talks to. */
typedef enum Expected
{
	EXPECT_HEADER,
	EXPECT_START_OK,
	EXPECT_TUNE_OK,
	EXPECT_OPEN,
	EXPECT_CHANNEL_OPEN,
	EXPECT_CONFIRM_SELECT,
	EXPECT_PUBLISH,
	EXPECT_NOTHING				/* it has said goodbye */
} Expected;

typedef enum Manner
{
	AFTERWARDS_HONEST,
	AFTERWARDS_MUTE,			/* reads, says nothing but heartbeats */
	AFTERWARDS_DEAF,			/* does not even read */
	AFTERWARDS_CLOSE,
	AFTERWARDS_RESET,
	MANNERS
} Manner;

typedef struct Unconfirmed
{
	uint64		tag;
	int64		id;
} Unconfirmed;

Peer		peer;

/* of the conversation */
static Random *dice;
static int	message_count;
static int	hostile_left;		/* connections */
static int	alarms_left;		/* of an honest broker */
static int	refusals_left[MAX_MESSAGES + 1];
static Bytes heard;
static Bytes say;

/* of the connection */
static int	connection;			/* wire.connections when it began */
static Tune tune;
static uint32 frame_max;		/* agreed */
static int	heartbeat;			/* agreed, s */
static Expected expected;
static int	answered;			/* answers of the handshake that were sent */
static int	asked;				/* questions of it that have come */
static int	published;			/* messages that have come */
static bool ignoring;			/* the channel is closed: until its close-ok */
static bool in_content;			/* basic.publish came, not yet all that follows */
static bool in_body;
static int64 content_id;
static size_t content_at;
static uint64 next_tag;
static Unconfirmed unconfirmed[MAX_MESSAGES * 4];
static int	unconfirmed_count;
static bool honest_block;		/* we have blocked it, as a broker may */
static TimestampTz said_at;
static TimestampTz act_at;		/* DT_NOEND: nothing planned */
static bool beats;

/* of the hostile act */
static int	strike_at;			/* handshake answers, then messages */
static Manner manner;
static bool must_end;			/* the worker has to leave now */
static bool must_stay;			/* the worker has no reason to leave */
static int	turns_since;		/* turns since it has read it all */
static TimestampTz struck_at;
static size_t slow_at;			/* TRICKLE: `slow` is said up to here */
static Bytes slow;
static int	slow_ms;

/* ---- plans ---- */

static Hostility
pick_kind(void)
{
	return (Hostility) random_from(dice, KIND_NONE + 1, KINDS - 1);
}

/* What the next connection will be like. */
static void
plan(void)
{
	peer.kind = KIND_NONE;
	peer.has_struck = peer.may_lie = must_end = must_stay = false;
	if (hostile_left > 0)
	{
		hostile_left--;
		peer.kind = pick_kind();
	}
	wire.next_answer = peer.kind == KIND_REFUSES_TCP ? WIRE_REFUSE :
		peer.kind == KIND_IGNORES_TCP ? WIRE_HANG : WIRE_ACCEPT;
	wire.capacity = one_in(dice, 3) ? random_from(dice, 64, 8192) : 200000;
}

void
peer_init(Random *random, int messages, int hostile)
{
	memset(&peer, 0, sizeof(peer));
	dice = random;
	message_count = messages;
	hostile_left = hostile;
	alarms_left = 3;
	for (int id = 1; id <= messages; id++)
		refusals_left[id] = one_in(dice, 5) ? (int) random_from(dice, 1, 2) : 0;
	connection = 0;
	expected = EXPECT_NOTHING;
	act_at = DT_NOEND;
	plan();
}

void
peer_free(void)
{
	free(heard.data);
	free(say.data);
	free(slow.data);
	memset(&heard, 0, sizeof(heard));
	memset(&say, 0, sizeof(say));
	memset(&slow, 0, sizeof(slow));
}

static void
begin_connection(TimestampTz now)
{
	static const uint32 sizes[] = {0, 4096, 4097, 8192, 131072, 1000000};
	static const uint16 heartbeats[] = {0, 1, 10, 60};

	connection = wire.connections;
	heard.len = slow.len = slow_at = 0;
	tune.channel_max = (uint16) random_below(dice, 2048);
	tune.frame_max = sizes[random_below(dice, lengthof(sizes))];
	tune.heartbeat = heartbeats[random_below(dice, lengthof(heartbeats))];
	frame_max = 4096;
	heartbeat = 0;
	expected = EXPECT_HEADER;
	answered = asked = published = 0;
	ignoring = in_content = in_body = honest_block = false;
	next_tag = 1;
	unconfirmed_count = 0;
	said_at = now;
	act_at = DT_NOEND;
	beats = peer.kind == KIND_NONE || !one_in(dice, 3);

	manner = (Manner) random_below(dice, MANNERS);
	strike_at = one_in(dice, 2) ? (int) random_below(dice, HANDSHAKE_ANSWERS) :
		HANDSHAKE_ANSWERS + (int) random_below(dice, message_count);
	switch (peer.kind)
	{
		case KIND_TUNE:
			strike_at = 2;
			break;
		case KIND_EAGER:
			strike_at = 0;
			break;
		case KIND_REFUSES_MESSAGES:
			strike_at = HANDSHAKE_ANSWERS;
			break;
		case KIND_ACK_NEVER_SENT:
		case KIND_ACK_TWICE:
		case KIND_RETURN_UNKNOWN:
		case KIND_CLOSES_CHANNEL:
		case KIND_FLOOD:
			if (!one_in(dice, 8))
				strike_at = HANDSHAKE_ANSWERS + (int) random_below(dice, Min(message_count, 4));
			break;
		default:
			break;
	}
}

bool
peer_is_bearable(void)
{
	if (peer.has_struck)
		return must_stay;
	return beats && peer.kind != KIND_REFUSES_TCP && peer.kind != KIND_IGNORES_TCP;
}

static void
flush(TimestampTz now)
{
	if (say.len == 0)
		return;
	wire_say(say.data, say.len);
	say.len = 0;
	said_at = now;
}

/* ---- what the worker sends ---- */

static uint64
number_at(const unsigned char *at, int width)
{
	uint64		value = 0;

	for (int i = 0; i < width; i++)
		value = value << 8 | at[i];
	return value;
}

/* The next answer of the handshake is due, unless it was given before it was asked for. */
static void
answer_handshake(void)
{
	if (++asked <= answered)
		return;
	if (peer.kind == KIND_NONE && answered == 0 && one_in(dice, 4))
		put_start(&say, dice, 3000);
	else
		put_answer(&say, dice, answered, &tune);
	answered++;
}

static void
heard_tune_ok(const unsigned char *at, size_t len)
{
	uint32		size = (uint32) number_at(at + 2, 4);

	if (len != 8)
		conversation_failed("tune-ok of %zu bytes", len);
	if (size < 4096 || size > 131072)
		conversation_failed("tune-ok with frame_max %u", size);
	/* A tune whose bytes were mutated said something else than `tune`. */
	if (!peer.may_lie && tune.frame_max != 0 && size > tune.frame_max)
		conversation_failed("tune-ok with frame_max %u for %u", size, tune.frame_max);
	if (!peer.may_lie && tune.channel_max != 0 && number_at(at, 2) > tune.channel_max)
		conversation_failed("tune-ok with channel_max %d", (int) number_at(at, 2));
	frame_max = size;
	heartbeat = (int) number_at(at + 6, 2);
}

static void
heard_method(int channel, int class_id, int method_id, const unsigned char *at, size_t len)
{
	int			method = class_id * 1000 + method_id;
	static const struct
	{
		int			method;
		int			channel;
	}			handshake[] = {
		[EXPECT_START_OK] = {10011, 0},
		[EXPECT_TUNE_OK] = {10031, 0},
		[EXPECT_OPEN] = {10040, 0},
		[EXPECT_CHANNEL_OPEN] = {20010, 1},
		[EXPECT_CONFIRM_SELECT] = {85010, 1}
	};

	if (in_content)
		conversation_failed("method %d in the midst of a message", method);
	if (channel == 0 && (method == 10050 || method == 10051))
	{
		expected = EXPECT_NOTHING;
		return;
	}
	if (expected == EXPECT_PUBLISH)
	{
		if (channel != 1)
			conversation_failed("method %d on channel %d", method, channel);
		else if (method == 60040)
		{
			in_content = true;
			in_body = false;
		}
		else if (method == 20041)
		{
			expected = EXPECT_CHANNEL_OPEN;
			ignoring = false;
			unconfirmed_count = 0;
			asked = answered = 3;
		}
		else if (method != 20021)
			conversation_failed("method %d while publishing", method);
		return;
	}
	if (expected <= EXPECT_HEADER || expected >= EXPECT_PUBLISH ||
		handshake[expected].method != method || handshake[expected].channel != channel)
	{
		conversation_failed("method %d on channel %d at step %d", method, channel, expected);
		return;
	}
	if (expected == EXPECT_TUNE_OK)
		heard_tune_ok(at, len);
	else
		answer_handshake();
	if (expected == EXPECT_CONFIRM_SELECT)
	{
		next_tag = 1;
		unconfirmed_count = 0;
	}
	expected++;
}

static void
heard_message(void)
{
	uint64		tag = next_tag++;

	in_content = in_body = false;
	published++;
	if (ignoring || unconfirmed_count == lengthof(unconfirmed))
		return;
	unconfirmed[unconfirmed_count].tag = tag;
	unconfirmed[unconfirmed_count++].id = content_id;
}

/* The headers of our messages are nothing but x-outbox-id. */
static void
heard_content_header(const unsigned char *at, size_t len)
{
	if (!in_content || in_body)
	{
		conversation_failed("a content header without basic.publish");
		return;
	}
	if (len != 39 || number_at(at, 2) != 60 || number_at(at + 12, 2) != 0x2000 ||
		memcmp(at + 18, "\013x-outbox-idl", 13) != 0)
	{
		conversation_failed("a content header that is not ours");
		return;
	}
	content_id = (int64) number_at(at + 31, 8);
	if (content_id < 1 || content_id > message_count ||
		number_at(at + 4, 8) != message_size(content_id))
	{
		conversation_failed("content header with id " INT64_FORMAT, content_id);
		return;
	}
	in_body = true;
	content_at = 0;
	if (message_size(content_id) == 0)
		heard_message();
}

static void
heard_body(const unsigned char *at, size_t len)
{
	if (!in_body || len == 0 || content_at + len > message_size(content_id))
	{
		conversation_failed("a body where none belongs");
		return;
	}
	for (size_t i = 0; i < len; i++)
	{
		if (at[i] != message_byte(content_id, content_at + i))
		{
			conversation_failed("message " INT64_FORMAT " has another content", content_id);
			return;
		}
	}
	content_at += len;
	if (content_at == message_size(content_id))
		heard_message();
}

static void
heard_frame(const unsigned char *frame, size_t len)
{
	int			channel = (int) number_at(frame + 1, 2);
	const unsigned char *payload = frame + 7;
	size_t		size = len - 8;

	if (expected == EXPECT_NOTHING)
		conversation_failed("a frame after goodbye");
	if (frame[len - 1] != 0xCE)
		conversation_failed("a frame without end mark");
	switch (frame[0])
	{
		case 1:
			if (size < 4)
				conversation_failed("a method frame of %zu bytes", size);
			else
				heard_method(channel, (int) number_at(payload, 2), (int) number_at(payload + 2, 2),
							 payload + 4, size - 4);
			break;
		case 2:
			if (channel != 1 || expected != EXPECT_PUBLISH)
				conversation_failed("content on channel %d at step %d", channel, expected);
			heard_content_header(payload, size);
			break;
		case 3:
			if (channel != 1 || expected != EXPECT_PUBLISH)
				conversation_failed("content on channel %d at step %d", channel, expected);
			heard_body(payload, size);
			break;
		case 8:
			if (size != 0 || channel != 0)
				conversation_failed("an odd heartbeat");
			if (expected < EXPECT_OPEN)
				conversation_failed("a heartbeat at step %d", expected);
			if (in_content)
				conversation_failed("a heartbeat in the midst of a message");
			break;
		default:
			conversation_failed("a frame of type %d", frame[0]);
	}
}

/* Read what has arrived, and take the frames that are whole. */
static void
hear(void)
{
	unsigned char data[4096];
	size_t		got;
	size_t		at = 0;

	if (wire.to_peer.end == wire.to_peer.start)
		return;
	while ((got = wire_hear(data, sizeof(data))) > 0)
		put(&heard, data, got);
	if (expected == EXPECT_HEADER && heard.len >= 8)
	{
		if (memcmp(heard.data, "AMQP\0\0\x09\x01", 8) != 0)
			conversation_failed("another protocol header");
		at = 8;
		expected = EXPECT_START_OK;
		answer_handshake();
	}
	while (expected != EXPECT_HEADER && heard.len - at >= 8)
	{
		size_t		len = number_at(heard.data + at + 3, 4) + 8;

		if (len > 131072 || (len > frame_max && expected > EXPECT_TUNE_OK))
		{
			conversation_failed("a frame of %zu bytes", len);
			break;
		}
		if (heard.len - at < len)
			break;
		heard_frame(heard.data + at, len);
		at += len;
	}
	heard.len -= at;
	if (at > 0)
		memmove(heard.data, heard.data + at, heard.len);
}

/* ---- honest answers ---- */

static void
forget_unconfirmed(int first, int count)
{
	unconfirmed_count -= count;
	memmove(unconfirmed + first, unconfirmed + first + count,
			sizeof(Unconfirmed) * (unconfirmed_count - first));
}

/* Confirm `count` messages from the first on, all at once if there are several. */
static void
confirm(int first, int count)
{
	const Unconfirmed *last = &unconfirmed[first + count - 1];

	put_answer_to_publish(&say, true, last->tag, count > 1);
	for (int i = first; i < first + count; i++)
		peer.stored[unconfirmed[i].id] = true;
	forget_unconfirmed(first, count);
}

/* Refuse one message as a broker may, for a time. */
static void
refuse(int which)
{
	const Unconfirmed *message = &unconfirmed[which];

	refusals_left[message->id]--;
	if (one_in(dice, 2))
		put_answer_to_publish(&say, false, message->tag, false);
	else
	{
		put_return(&say, dice, message->id, message_size(message->id), frame_max, 0);
		put_answer_to_publish(&say, true, message->tag, false);
	}
	forget_unconfirmed(which, 1);
}

static void
answer_messages(TimestampTz now)
{
	if (act_at == DT_NOEND)
		act_at = one_in(dice, 3) ? now + MS(random_below(dice, 3000)) : now;
	if (now < act_at)
		return;
	act_at = DT_NOEND;
	for (int i = 0; i < unconfirmed_count;)
	{
		if (refusals_left[unconfirmed[i].id] > 0)
			refuse(i);
		else
			i++;
	}
	if (unconfirmed_count == 0)
		return;
	if (one_in(dice, 2))
		confirm(0, (int) random_from(dice, 1, unconfirmed_count));
	else
		confirm((int) random_below(dice, unconfirmed_count), 1);
}

/* Now and then an alarm, as a broker has them. */
static void
honest_alarm(TimestampTz now)
{
	if (honest_block ? now < act_at : alarms_left == 0 || !one_in(dice, 40))
		return;
	honest_block = !honest_block;
	if (honest_block)
		alarms_left--;
	if (one_in(dice, 2))
	{
		put_blocked(&say, dice, honest_block);
		if (!honest_block)
			put_flow(&say, true);
	}
	else
	{
		put_flow(&say, !honest_block);
		if (!honest_block)
			put_blocked(&say, dice, false);
	}
	act_at = honest_block ? now + MS(random_below(dice, 200000)) : DT_NOEND;
}

static void
be_honest(TimestampTz now)
{
	if (answered < HANDSHAKE_ANSWERS || expected != EXPECT_PUBLISH || ignoring)
	{
		act_at = DT_NOEND;
		return;
	}
	if (peer.kind == KIND_NONE)
		honest_alarm(now);
	if (honest_block)
		return;
	if (unconfirmed_count > 0)
		answer_messages(now);
	else
		act_at = DT_NOEND;
}

static void
beat(TimestampTz now)
{
	if (heartbeat > 0 && beats && now - said_at >= MS(heartbeat * 500))
		put_heartbeat(&say);
}

/* ---- hostile acts ---- */

/* Some frames, right or nearly so, that might come at this time. */
static void
plausible_frames(uint64 most)
{
	for (uint64 n = random_from(dice, 1, most); n > 0; n--)
	{
		if (answered < HANDSHAKE_ANSWERS && one_in(dice, 2))
			put_answer(&say, dice, answered, &tune);
		else
			put_any(&say, dice, next_tag);
	}
}

static void
strike_out_of_turn(void)
{
	int			which = (int) random_below(dice, HANDSHAKE_ANSWERS);

	if (which == answered)
		which = (which + 1) % HANDSHAKE_ANSWERS;
	put_answer(&say, dice, which, &tune);
	must_end = true;
}

static void
strike_tune(void)
{
	static const uint32 sizes[] = {1, 7, 8, 4095, 4096, 4097, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0};
	static const uint16 heartbeats[] = {0, 1, 2, 65535};

	tune.frame_max = sizes[random_below(dice, lengthof(sizes))];
	tune.heartbeat = heartbeats[random_below(dice, lengthof(heartbeats))];
	tune.channel_max = (uint16) random_bits(dice);
	must_end = tune.frame_max != 0 && tune.frame_max < 4096;
	must_stay = !must_end;
	manner = AFTERWARDS_HONEST;
	put_tune(&say, &tune);
	answered++;
}

static void
strike_ack_twice(void)
{
	uint64		tag = 1;

	if (unconfirmed_count > 0)
	{
		tag = unconfirmed[0].tag;
		confirm(0, 1);
	}
	else
		put_answer_to_publish(&say, true, tag, false);
	put_answer_to_publish(&say, !one_in(dice, 3), tag, false);
	must_end = true;
	peer.may_lie = true;		/* with tag 1, if it was under way */
}

/* Return what was published, if anything was, with headers of great depth. */
static void
strike_nested(void)
{
	if (answered == 0)
	{
		put_start(&say, dice, (int) random_from(dice, 1000, 18000));
		answered = 1;
		must_stay = true;
	}
	else if (answered == HANDSHAKE_ANSWERS && unconfirmed_count > 0)
	{
		put_return(&say, dice, unconfirmed[0].id, 100, frame_max, 18000);
		put_answer_to_publish(&say, true, unconfirmed[0].tag, false);
		forget_unconfirmed(0, 1);
		must_stay = true;
	}
	else
	{
		put_return(&say, dice, 0, 100, frame_max, 18000);
		must_end = true;
	}
}

static void
strike_return_unknown(void)
{
	static const int64 ids[] = {0, -1, PG_INT64_MAX, PG_INT64_MIN, MAX_MESSAGES + 1};

	put_return(&say, dice, ids[random_below(dice, lengthof(ids))], random_below(dice, 10000),
			   frame_max, 0);
	must_end = true;
}

static void
strike_ack_never_sent(void)
{
	static const uint64 tags[] = {PG_UINT64_MAX, PG_INT64_MAX, UINT64CONST(1) << 63,
	UINT64CONST(1) << 32, MAX_MESSAGES * 1000};
	bool		zero = one_in(dice, 5);

	put_answer_to_publish(&say, !one_in(dice, 3),
						  zero ? 0 : tags[random_below(dice, lengthof(tags))],
						  !zero && one_in(dice, 2));
	must_end = true;
}

static void
strike_closes_channel(void)
{
	put_close(&say, dice, 1, one_in(dice, 2) ? 404 : (int) random_from(dice, 0, 65535),
			  one_in(dice, 2));
	if (answered < HANDSHAKE_ANSWERS)
		must_end = true;
	else
	{
		ignoring = must_stay = true;
		unconfirmed_count = 0;
		manner = one_in(dice, 3) ? manner : AFTERWARDS_HONEST;
	}
}

static void
strike_blocks(void)
{
	must_end = answered < 3;
	for (uint64 n = one_in(dice, 2) ? 1 : random_from(dice, 1, 1000); n > 0; n--)
	{
		put_blocked(&say, dice, n == 1 || one_in(dice, 2));
		if (answered == HANDSHAKE_ANSWERS && one_in(dice, 3))
			put_flow(&say, one_in(dice, 2));
	}
	if (!one_in(dice, 3))
	{
		put_blocked(&say, dice, false);
		if (answered == HANDSHAKE_ANSWERS)
			put_flow(&say, true);
		must_stay = answered == HANDSHAKE_ANSWERS;
	}
}

/* What must be answered, and nobody reads the answers. */
static void
strike_flood(void)
{
	bool		in_turn = one_in(dice, 2);	/* then each is an event */

	wire.capacity = random_from(dice, 64, 4096);
	for (int i = 0; i < 8000; i++)
		put_flow(&say, in_turn ? i % 2 == 1 : one_in(dice, 2));
	manner = AFTERWARDS_DEAF;
	must_end = true;
}

/* Something valid, so slowly that it is worth nothing. */
static void
strike_trickle(void)
{
	Bytes		saved = say;

	say = slow;
	say.len = 0;
	plausible_frames(3);
	slow = say;
	say = saved;
	slow_at = 0;
	slow_ms = (int) random_from(dice, 1, 4000);
	peer.may_lie = true;
}

static void
strike_truncated(void)
{
	size_t		from = say.len;

	plausible_frames(1);
	say.len -= random_from(dice, 1, say.len - from);
	if (one_in(dice, 2))
		plausible_frames(2);
	peer.may_lie = true;
}

static void
strike_mutated(void)
{
	for (uint64 n = random_from(dice, 1, 8); n > 0; n--)
	{
		size_t		from = say.len;

		plausible_frames(1);
		if (!one_in(dice, 3))
			mutate(&say, from, dice);
	}
	peer.may_lie = true;
}

static void
strike(TimestampTz now)
{
	peer.has_struck = true;
	struck_at = now;
	turns_since = 0;
	switch (peer.kind)
	{
		case KIND_NONE:
		case KIND_REFUSES_TCP:
		case KIND_IGNORES_TCP:
		case KINDS:
			break;
		case KIND_GARBAGE:
			if (one_in(dice, 2))
				put_number(&say, random_from(dice, 1, 3), 1);
			put_random(&say, dice, random_from(dice, 1, 3000));
			peer.may_lie = true;
			break;
		case KIND_MUTATED:
			strike_mutated();
			break;
		case KIND_TRUNCATED:
			strike_truncated();
			break;
		case KIND_OVERSIZED:
			put_oversized(&say, dice, answered < 2 ? 131072 : frame_max);
			must_end = answered < 2 || expected > EXPECT_TUNE_OK;
			break;
		case KIND_NO_END_MARK:
			put_without_end(&say, dice);
			must_end = true;
			break;
		case KIND_WRONG_CHANNEL:
			put_wrong_channel(&say, dice);
			must_end = true;
			break;
		case KIND_ACK_NEVER_SENT:
			strike_ack_never_sent();
			break;
		case KIND_ACK_TWICE:
			strike_ack_twice();
			break;
		case KIND_RETURN_UNKNOWN:
			strike_return_unknown();
			break;
		case KIND_ABSURD_LENGTH:
			put_absurd_length(&say, dice);
			must_end = true;
			break;
		case KIND_NESTED_TABLES:
			strike_nested();
			break;
		case KIND_OUT_OF_TURN:
			strike_out_of_turn();
			break;
		case KIND_UNEXPECTED:
			put_unexpected_method(&say, dice);
			must_end = true;
			break;
		case KIND_EAGER:
			for (; answered < HANDSHAKE_ANSWERS; answered++)
				put_answer(&say, dice, answered, &tune);
			must_stay = true;
			break;
		case KIND_TUNE:
			strike_tune();
			break;
		case KIND_CLOSES_CONNECTION:
			put_close(&say, dice, 0, one_in(dice, 2) ? 320 : (int) random_from(dice, 0, 65535),
					  one_in(dice, 2));
			if (one_in(dice, 2))
				plausible_frames(3);
			must_end = true;
			break;
		case KIND_CLOSES_CHANNEL:
			strike_closes_channel();
			break;
		case KIND_REFUSES_MESSAGES:
			for (int id = 1; id <= message_count; id++)
				refusals_left[id] += one_in(dice, 3) ? (int) random_from(dice, 1, 4) : 0;
			manner = AFTERWARDS_HONEST;
			must_stay = true;
			break;
		case KIND_BLOCKS:
			strike_blocks();
			break;
		case KIND_FLOOD:
			strike_flood();
			break;
		case KIND_TRICKLE:
			strike_trickle();
			break;
		case KIND_DEAF:
			manner = AFTERWARDS_DEAF;
			break;
		case KIND_SILENT:
			manner = AFTERWARDS_MUTE;
			break;
		case KIND_END_OF_FILE:
		case KIND_RESET:
			if (one_in(dice, 2))
				strike_truncated();
			manner = peer.kind == KIND_RESET ? AFTERWARDS_RESET : AFTERWARDS_CLOSE;
			break;
		case KIND_STORM:
			plausible_frames(200);
			peer.may_lie = true;
			break;
	}
	/* A close or reset would hide whether the worker leaves by itself. */
	if (must_end && manner >= AFTERWARDS_CLOSE)
		manner = AFTERWARDS_MUTE;
	/* Nor does one stay with a peer that says nothing more. */
	must_stay = must_stay && manner == AFTERWARDS_HONEST;
	beats = beats || must_stay;
}

/* Is it time?  The first answers count one each, then the messages. */
static bool
is_time_to_strike(void)
{
	if (peer.kind == KIND_NONE || peer.has_struck)
		return false;
	if (strike_at < HANDSHAKE_ANSWERS)
		return asked >= strike_at;
	return answered == HANDSHAKE_ANSWERS && published + HANDSHAKE_ANSWERS >= strike_at;
}

static void
watch_it_leave(TimestampTz now)
{
	if (!peer.has_struck)
		return;
	if (must_end && pipe_used(&wire.to_worker) == 0 && ++turns_since > TURNS_TO_LEAVE)
		conversation_failed("the worker tolerates: %s", hostility_names[peer.kind]);
	if (now - struck_at < PATIENCE)
		return;
	if (!worker_is_blocked())
		conversation_failed("the worker stays for an hour with: %s", hostility_names[peer.kind]);
	wire_close();
}

static void
trickle(TimestampTz now)
{
	if (now < act_at && act_at != DT_NOEND)
		return;
	put(&say, slow.data + slow_at++, 1);
	act_at = slow_at < slow.len ? now + MS(slow_ms) : DT_NOEND;
}

static void
go_on(TimestampTz now)
{
	if (slow_at < slow.len)
		trickle(now);
	else if (manner == AFTERWARDS_HONEST)
		be_honest(now);
	else if (manner == AFTERWARDS_CLOSE || manner == AFTERWARDS_RESET)
	{
		flush(now);
		if (manner == AFTERWARDS_CLOSE)
			wire_close();
		else
			wire_reset();
	}
	if (slow_at >= slow.len)
		beat(now);
}

void
peer_turn(TimestampTz now)
{
	bool		mute;

	if (connection != wire.connections)
		begin_connection(now);
	if (wire.fd < 0 || wire.next_answer != WIRE_ACCEPT)
		return;
	if (!(peer.has_struck && manner == AFTERWARDS_DEAF))
		hear();
	mute = peer.has_struck && (manner != AFTERWARDS_HONEST || slow_at < slow.len);
	if (mute)
		say.len = 0;
	if (is_time_to_strike())
	{
		/* Instead of the answer, sometimes. */
		if (strike_at < HANDSHAKE_ANSWERS && say.len > 0 &&
			(peer.kind == KIND_TUNE || one_in(dice, 2)))
		{
			say.len = 0;
			answered = asked - 1;
		}
		strike(now);
	}
	else if (!peer.has_struck)
	{
		be_honest(now);
		beat(now);
	}
	else
		go_on(now);
	flush(now);
	watch_it_leave(now);
}

TimestampTz
peer_deadline(void)
{
	TimestampTz at = DT_NOEND;

	if (wire.fd < 0 || wire.next_answer != WIRE_ACCEPT || connection != wire.connections)
		return at;
	if (peer.has_struck)
		at = struck_at + PATIENCE;
	if (slow_at < slow.len)
		return Min(at, act_at);
	if (heartbeat > 0 && beats)
		at = Min(at, said_at + MS(heartbeat * 500));
	if (!peer.has_struck || manner == AFTERWARDS_HONEST)
		at = Min(at, act_at);
	return at;
}

void
peer_follow_clock(TimestampTz back)
{
	said_at -= back;
	struck_at -= back;
	if (act_at != DT_NOEND)
		act_at -= back;
}

void
peer_lost(void)
{
	if (connection == wire.connections && wire.next_answer == WIRE_ACCEPT && wire.fd < 0)
		hear();					/* its last words */
	say.len = 0;
	plan();
}
