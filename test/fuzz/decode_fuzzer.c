/*
 * decode_fuzzer.c
 *		Received bytes, chosen by libFuzzer: into the decoder alone, and, as
 *		what a peer says, into a connection in one of its states.
 *
 *		Without clang, standalone.c calls the same function.
 */
#include "pgcompat.h"

#include "utils/memutils.h"

#include "batch.h"
#include "broker.h"
#include "confirm.h"
#include "settings.h"

#include "frames.h"
#include "shim.h"
#include "wire.h"

#undef fprintf

#define MS(ms) ((TimestampTz) (ms) * 1000)
#define BEGINNING	((TimestampTz) INT64CONST(800000000000000))
#define IN_FLIGHT	8

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

/* ---- the decoder ---- */

static void
judge_frame(const OutboxFrame *frame, size_t len, uint32 frame_max)
{
	require(frame->length <= len && frame->length <= frame_max, "a frame longer than it may be");
	require(memchr(frame->text, '\0', sizeof(frame->text)) != NULL, "a text without end");
	require((frame->type == OUTBOX_FRAME_MALFORMED) == (frame->error != NULL),
			"malformed, and no reason; or the reverse");
	if (frame->type == OUTBOX_FRAME_MALFORMED || frame->type == OUTBOX_FRAME_INCOMPLETE)
		require(frame->length == 0, "a length of no frame");
	else
		require(frame->length >= OUTBOX_AMQP_OVERHEAD, "a frame without a length");
}

/* The same bytes, as they would arrive one by one: incomplete up to the end. */
static void
judge_prefixes(const uint8_t *data, const OutboxFrame *whole, uint32 frame_max)
{
	OutboxFrame frame;

	for (size_t len = 0; len < whole->length; len += 1 + len / 8)
	{
		uint8_t    *prefix = malloc(len + 1);

		memcpy(prefix + 1, data, len);
		outbox_amqp_decode(prefix + 1, len, frame_max, &frame);
		require(frame.type == OUTBOX_FRAME_INCOMPLETE, "part of a frame is taken for more");
		free(prefix);
	}
}

static void
decode_all(const uint8_t *data, size_t len, uint32 frame_max)
{
	OutboxFrame frame;

	while (len > 0)
	{
		/* A copy of the exact size, so that one byte too many is seen. */
		uint8_t    *copy = malloc(len);

		memcpy(copy, data, len);
		outbox_amqp_decode(copy, len, frame_max, &frame);
		judge_frame(&frame, len, frame_max);
		free(copy);
		if (frame.length == 0)
			break;
		judge_prefixes(data, &frame, frame_max);
		data += frame.length;
		len -= frame.length;
	}
}

static void
print_all(const uint8_t *data, size_t len)
{
	for (size_t size = 1; size < 24; size += 3)
	{
		char	   *text = malloc(size);

		outbox_amqp_printable(text, size, data, len);
		require(memchr(text, '\0', size) != NULL, "a printable text without end");
		free(text);
	}
}

/* ---- a connection ---- */

static OutboxBroker *broker;
static OutboxBatch *batch;
static size_t batch_chunks;		/* pieces of memory of an empty batch */
static bool ready;

static void
take_events(void)
{
	OutboxBrokerEvent event;
	OutboxTally tally = {0};
	const char *nonsense;

	while (outbox_confirm_next_event(broker, &event))
	{
		bool		answer = event.type == OUTBOX_EVENT_ACK || event.type == OUTBOX_EVENT_NACK ||
			event.type == OUTBOX_EVENT_RETURN || event.type == OUTBOX_EVENT_CHANNEL_CLOSED;

		require(memchr(event.text, '\0', sizeof(event.text)) != NULL, "an event's text without end");
		require(!answer || ready, "an answer without READY");
		require(event.type != OUTBOX_EVENT_READY || !ready, "READY while ready");
		if (event.type == OUTBOX_EVENT_READY)
			ready = true;
		if (event.type == OUTBOX_EVENT_LOST || event.type == OUTBOX_EVENT_CHANNEL_CLOSED)
			ready = false;
		nonsense = outbox_confirm_apply(batch, &batch->channels[0], &event, &tally);
		if (nonsense != NULL)
			outbox_broker_fail(broker, nonsense);
	}
}

static void
turn(TimestampTz now)
{
	char		heard[4096];

	outbox_broker_turn(broker, now);
	take_events();
	while (wire_hear(heard, sizeof(heard)) > 0)
		;
}

/* Messages 1 to IN_FLIGHT are on their way. */
static void
fill_batch(void)
{
	varattrib_4b payload;

	SET_VARSIZE(&payload, VARHDRSZ);
	for (int id = 1; id <= IN_FLIGHT; id++)
	{
		OutboxMessage message = {0};
		uint64		index;

		message.id = id;
		message.payload = PointerGetDatum(&payload);
		index = outbox_batch_append(batch, &message, NULL);
		(void) outbox_batch_take_turn(batch, index);
		outbox_batch_sent(batch, &batch->channels[0], index, 100, BEGINNING);
	}
}

/* The batch is large: one serves for all inputs. */
static void
empty_batch(void)
{
	outbox_batch_unsend(batch, &batch->channels[0]);
	while (batch->head < batch->tail)
	{
		if (outbox_batch_entry(batch, batch->head)->outcome == OUTBOX_WAITING)
			outbox_batch_settle(batch, batch->head, OUTBOX_CONFIRMED, NULL);
		outbox_batch_pop(batch);
	}
	batch->careful_until = 0;
	batch->suspect_id = 0;
}

/* The first byte of the input decides how far the handshake has come. */
static void
converse(uint8_t mode, const uint8_t *data, size_t len)
{
	Random		random = {mode};
	Tune		tune = {0, mode & 8 ? 4096 : 131072, 15};
	MemoryContext context;
	TimestampTz now = BEGINNING;
	Bytes		say = {0};

	shim_default_settings();
	wire_init(&random);
	context = AllocSetContextCreate(TopMemoryContext, "input", ALLOCSET_SMALL_SIZES);
	if (batch == NULL)
	{
		batch = outbox_batch_create(TopMemoryContext);
		batch_chunks = shim_chunks(TopMemoryContext) - 1;
	}
	broker = outbox_broker_create(context, "outbox/fuzz");
	ready = false;
	outbox_broker_configure(broker);
	turn(now);
	for (int i = 0; i < Min(mode & 7, HANDSHAKE_ANSWERS); i++)
		put_answer(&say, &random, i, &tune);
	wire_say(say.data, say.len);
	turn(now);
	if (ready)
		fill_batch();

	while (len > 0 && wire.fd >= 0)
	{
		size_t		piece = mode & 16 ? Min(len, 7) : len;

		wire_say(data, piece);
		turn(now);
		data += piece;
		len -= piece;
	}
	if (mode & 32)
		wire_close();
	for (int i = 0; i < 8; i++)
	{
		turn(now);
		if (outbox_broker_deadline(broker) != DT_NOEND)
			now = Max(now, outbox_broker_deadline(broker));
	}
	outbox_broker_close(broker);
	MemoryContextDelete(context);
	empty_batch();
	free(say.data);
	require(wire.fd < 0 && shim_external_fds() == 0, "a socket is left");
	require(shim_chunks(TopMemoryContext) == batch_chunks, "memory is left");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	decode_all(data + 1, size - 1, data[0] & 8 ? OUTBOX_AMQP_FRAME_MIN : OUTBOX_AMQP_FRAME_MAX);
	print_all(data + 1, size - 1);
	converse(data[0], data + 1, size - 1);
	return 0;
}
