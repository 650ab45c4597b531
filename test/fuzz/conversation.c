/*
 * conversation.c
 *		The broker connection against hostile peers: thousands of
 *		conversations, each decided by one number.
 *
 *		In each, some messages are to be delivered. The first connections lead
 *		to a hostile peer (peer.c), those that follow to an honest one. This
 *		file owns the worker's part, which is worker.c and publish.c without
 *		tables and with a clock that moves only when nothing else does, and it
 *		owns what must hold:
 *
 *		- each message is confirmed in the end, and an honest peer has it,
 *		  unless a peer that may lie has confirmed it;
 *		- no peer is left that has given no reason for it;
 *		- no peer ever hears anything that is not proper AMQP (peer.c);
 *		- no answer is reported between LOST, or CHANNEL_CLOSED, and READY;
 *		- the number of turns, the time and the memory have bounds, and a turn
 *		  without effect is followed by a wait;
 *		- nothing is left: socket, reserved descriptor, memory in any context.
 *
 *		Real here: broker*.c, transport.c, resolve.c, uri.c, passfile.c,
 *		amqp_*.c, buffer.c, batch.c, confirm.c, stall.c. Stand-ins: shim.c for
 *		PostgreSQL, wire.c for the network.
 */
#include "pgcompat.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sanitizer/common_interface_defs.h>

#include "utils/memutils.h"

#include "amqp_headers.h"
#include "batch.h"
#include "broker.h"
#include "confirm.h"
#include "settings.h"
#include "stall.h"

#include "frames.h"
#include "peer.h"
#include "shim.h"
#include "wire.h"

#undef printf
#undef fprintf
#undef vsnprintf
#undef snprintf

#define MS(ms) ((TimestampTz) (ms) * 1000)
#define BEGINNING	((TimestampTz) INT64CONST(800000000000000))
#define MAX_TURNS	60000
#define MAX_SPIN	60			/* turns in a row that change nothing, and no wait */
#define WATCHDOG_S	60			/* of real time, for one conversation */

/* How connections end: by the words of LOST. */
static const char *const reasons[] = {
	"broke the protocol", "left RabbitMQ", "lost the connection to", "closed the connection",
	"refused the login", "did not answer within", "no heartbeat from", "could not connect",
	"ended the connection before login", "ended the connection during", "ended the connection while", "refused to open a channel",
	"was changed", "could not log in", "does not offer", "(other)"
};

typedef struct Statistics
{
	uint64		conversations;
	uint64		failures;
	uint64		connections;
	uint64		messages;
	uint64		lies;
	uint64		turns;
	uint64		struck[KINDS];
	uint64		survived[KINDS];	/* the connection was kept to the end */
	uint64		ended[lengthof(reasons)];
} Statistics;

typedef struct Message
{
	size_t		size;
	const char *key;
	bool		done;
	bool		lied;			/* confirmed by a peer that never stored it */
	int			attempts;
} Message;

static Statistics stats;
static uint64 seed;
static Random dice;
static char failure[512];
static Hostility failed_kind;	/* of the peer then */
static bool verbose;

/* the worker's side of a conversation */
static MemoryContext context;
static OutboxBroker *broker;
static OutboxBatch *batch;
static OutboxChannel *channel;	/* the only one */
static TimestampTz now;
static Message messages[MAX_MESSAGES + 1];
static int	message_count;
static int	done_count;
static int64 backlog[MAX_MESSAGES + 1]; /* to be read: a ring of ids */
static uint64 backlog_head;
static uint64 backlog_tail;
static bool ready;
static OutboxStall stall;
static TimestampTz gate_opens;	/* DT_NOEND: it is open */
static int	gate_chance;
static uint64 effects;			/* whatever happened, counted */

/* ---- what the peer asks ---- */

size_t
message_size(int64 id)
{
	return messages[id].size;
}

unsigned char
message_byte(int64 id, size_t at)
{
	return (unsigned char) (id * 31 + at * 7 + (at >> 8));
}

bool
worker_is_blocked(void)
{
	return outbox_broker_blocked(broker);
}

void
conversation_failed(const char *format,...)
{
	va_list		args;

	if (failure[0] != '\0')
		return;
	va_start(args, format);
	vsnprintf(failure, sizeof(failure), format, args);
	va_end(args);
	failed_kind = peer.kind;
}

/* ---- the steps of worker.c ---- */

static void
count_loss(const char *text)
{
	size_t		i = 0;

	while (i < lengthof(reasons) - 1 && strstr(text, reasons[i]) == NULL)
		i++;
	stats.ended[i]++;
}

static void
lost(const OutboxBrokerEvent *event)
{
	count_loss(event->text);
	if (peer.has_struck || peer.kind == KIND_REFUSES_TCP || peer.kind == KIND_IGNORES_TCP)
		stats.struck[peer.kind]++;
	if (peer_is_bearable() && strstr(event->text, "outbox.uri was changed") == NULL &&
		strstr(event->text, "could not log in") == NULL)
		conversation_failed("left without need: %s", event->text);
	gate_opens = DT_NOEND;
	batch->gated = OUTBOX_NO_ENTRY;
	peer_lost();
}

/* No answer without READY before it, no READY twice. */
static void
judge_event(const OutboxBrokerEvent *event)
{
	bool		was_ready = ready;

	if (verbose)
		fprintf(stderr, "%.3f event %d tag " UINT64_FORMAT " id " INT64_FORMAT " code %u: %s\n",
				(double) (now - BEGINNING) / 1000000, event->type, event->delivery_tag, event->id,
				event->code, event->text);
	if (memchr(event->text, '\0', sizeof(event->text)) == NULL)
		conversation_failed("a text without end");
	switch (event->type)
	{
		case OUTBOX_EVENT_READY:
			ready = true;
			if (was_ready)
				conversation_failed("READY while ready");
			if (outbox_broker_output(broker)->end != outbox_broker_output(broker)->start)
				conversation_failed("READY with old output");
			break;
		case OUTBOX_EVENT_LOST:
			ready = false;
			if (was_ready && (strstr(event->text, "could not log in") != NULL ||
							  strstr(event->text, "does not offer") != NULL))
				conversation_failed("READY without a login");
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			ready = false;
			/* FALLTHROUGH */
		case OUTBOX_EVENT_ACK:
		case OUTBOX_EVENT_NACK:
		case OUTBOX_EVENT_RETURN:
			if (!was_ready)
				conversation_failed("event %d without READY", event->type);
			break;
		case OUTBOX_EVENT_BLOCKED:
		case OUTBOX_EVENT_UNBLOCKED:
			break;
	}
}

/* What the peer has confirmed without having it, as some do. */
static void
note_lies(void)
{
	for (uint64 index = batch->head; index < batch->tail && peer.may_lie; index++)
	{
		OutboxEntry *entry = outbox_batch_entry(batch, index);

		if (entry->outcome != OUTBOX_CONFIRMED || peer.stored[entry->id] ||
			messages[entry->id].lied)
			continue;
		messages[entry->id].lied = true;
		stats.lies++;
	}
}

static void
take_events(void)
{
	OutboxBrokerEvent event;
	OutboxTally tally = {0};
	const char *nonsense;

	while (failure[0] == '\0' && outbox_confirm_next_event(broker, &event))
	{
		effects++;
		judge_event(&event);
		nonsense = outbox_confirm_apply(batch, channel, &event, &tally);
		if (event.type == OUTBOX_EVENT_ACK)
			note_lies();
		if (nonsense != NULL)
			outbox_broker_fail(broker, nonsense);
		if (event.type == OUTBOX_EVENT_LOST)
			lost(&event);
		else if (event.type == OUTBOX_EVENT_CHANNEL_CLOSED)
		{
			gate_opens = DT_NOEND;
			batch->gated = OUTBOX_NO_ENTRY;
		}
	}
	outbox_stall_watch(&stall, batch, channel, broker, now);
}

static bool
may_publish(void)
{
	return outbox_broker_state(broker) == OUTBOX_BROKER_READY && ready &&
		!outbox_broker_blocked(broker) && batch->gated == OUTBOX_NO_ENTRY &&
		batch->in_flight < outbox_batch_limit(batch);
}

/* ---- the steps of publish.c ---- */

/*
 * No breaker is opened here, for one destination is all there is; but a message
 * that is suspected is set aside.
 */
static bool
destination_works(uint64 index)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	OutboxScope suspect = entry->suspect;

	entry->suspect = OUTBOX_SCOPE_NONE;
	if (suspect == OUTBOX_SCOPE_NONE)
		return true;
	outbox_batch_settle_unavailable(batch, index, suspect, channel->refusal);
	effects++;
	return false;
}

static void
encode(uint64 index)
{
	OutboxEntry *entry = outbox_batch_entry(batch, index);
	OutboxBuffer *output = outbox_broker_output(broker);
	size_t		before = output->end - output->start;
	amqp_basic_properties_t properties = {0};
	amqp_table_entry_t header;
	OutboxBytes exchange = {"", 0};
	OutboxBytes routing_key = {"queue", 5};
	size_t		size = message_size(entry->id);
	char	   *body;

	if (!destination_works(index))
		return;
	body = palloc(size + 1);
	for (size_t i = 0; i < size; i++)
		body[i] = (char) message_byte(entry->id, i);
	header.key = amqp_cstring_bytes("x-outbox-id");
	header.value.kind = AMQP_FIELD_KIND_I64;
	header.value.value.i64 = entry->id;
	properties._flags = AMQP_BASIC_HEADERS_FLAG;
	properties.headers.num_entries = 1;
	properties.headers.entries = &header;
	if (!outbox_amqp_put_publish(output, outbox_broker_frame_max(broker), exchange, routing_key,
								 true, &properties, body, size))
		conversation_failed("a small header does not fit");
	pfree(body);
	outbox_batch_sent(batch, channel, index, output->end - output->start - before, now);
	messages[entry->id].attempts++;
	effects++;
}

/* Read the next message of the backlog into the batch. */
static void
admit(void)
{
	int64		id = backlog[backlog_head++ % lengthof(backlog)];
	OutboxMessage message = {0};
	varattrib_4b payload;
	uint64		index;
	bool		behind;

	SET_VARSIZE(&payload, VARHDRSZ);
	message.id = id;
	message.payload = PointerGetDatum(&payload);
	if (messages[id].key != NULL)
	{
		message.ordering_key.data = messages[id].key;
		message.ordering_key.len = strlen(messages[id].key);
	}
	behind = messages[id].key != NULL && outbox_batch_key_is_blocked(batch, message.ordering_key);
	index = outbox_batch_append(batch, &message, NULL);
	effects++;
	if (behind)
		outbox_batch_settle(batch, index, OUTBOX_BEHIND, NULL);
	else if (outbox_batch_take_turn(batch, index))
		encode(index);
}

/* What was read before goes first; see outbox_publish_unsent(). */
static void
publish_unsent(void)
{
	uint64		index;

	channel->find_culprit = false;	/* the words of the peers name nobody's exchange */
	while (may_publish() && (index = outbox_batch_take_ready(batch)) != OUTBOX_NO_ENTRY)
	{
		if (outbox_batch_entry(batch, index)->key->refused > 0)
			outbox_batch_settle(batch, index, OUTBOX_BEHIND, NULL);
		else
			encode(index);
	}
	while (may_publish() && batch->resend < batch->tail)
	{
		index = batch->resend++;
		if (outbox_batch_entry(batch, index)->outcome == OUTBOX_WAITING &&
			outbox_batch_take_turn(batch, index))
			encode(index);
	}
}

static void
publish(void)
{
	OutboxBuffer *output = outbox_broker_output(broker);
	uint64		first = batch->tail;

	if (gate_opens != DT_NOEND && now >= gate_opens)
	{
		output->sendable = output->end;
		batch->gated = OUTBOX_NO_ENTRY;
		gate_opens = DT_NOEND;
		effects++;
	}
	if (!may_publish())
		return;
	publish_unsent();
	while (may_publish() && batch->resend >= batch->tail && backlog_head < backlog_tail)
		admit();
	if (one_in(&dice, gate_chance))
	{
		gate_opens = now + MS(random_below(&dice, 200));
		batch->gated = first;
	}
	else
		output->sendable = output->end;
}

/* ---- and of record.c ---- */

static void
settled(const OutboxEntry *entry)
{
	Message    *message = &messages[entry->id];

	if (entry->outcome == OUTBOX_CONFIRMED && !message->done)
	{
		message->done = true;
		done_count++;
		if (!peer.stored[entry->id] && !message->lied)
			conversation_failed("message " INT64_FORMAT " is confirmed, and nobody has it", entry->id);
	}
	else
		backlog[backlog_tail++ % lengthof(backlog)] = entry->id;
}

static void
record(void)
{
	while (outbox_batch_head_settled(batch))
	{
		settled(outbox_batch_entry(batch, batch->head));
		outbox_batch_pop(batch);
		effects++;
	}
}

/* Now and then somebody changes the settings. */
static void
change_settings(void)
{
	static char *const uris[] = {
		"amqp://guest:guest@127.0.0.1:5672/",
		"amqp://guest:guest@127.0.0.1:5673/other",
		"amqp://nobody@127.0.0.1:5672/,amqp://guest:guest@127.0.0.1:5672/",
		"amqp://guest@127.0.0.2,amqp://somebody:secret@[::1]:5672/%2F"
	};

	outbox_uri = uris[random_below(&dice, lengthof(uris))];
	if (one_in(&dice, 3) && outbox_broker_state(broker) != OUTBOX_BROKER_IDLE)
	{
		/* disabled and enabled again: no event tells of it */
		outbox_broker_close(broker);
		outbox_batch_unsend(batch, channel);
		batch->gated = OUTBOX_NO_ENTRY;
		gate_opens = DT_NOEND;
		ready = false;
		peer_lost();
	}
	outbox_broker_configure(broker);
	effects++;
}

/* ---- a conversation ---- */

static void
begin(void)
{
	static const int heartbeats[] = {0, 1, 15, 15};
	static const size_t pieces[] = {0, 0, 1, 3, 20, 1000};
	static const char *const keys[] = {NULL, NULL, NULL, "a", "b"};

	dice.state = seed * UINT64CONST(0xD1342543DE82EF95) + 1;
	failure[0] = '\0';
	shim_default_settings();
	shim_reset_peak();
	wire_init(&dice);
	wire.piece = pieces[random_below(&dice, lengthof(pieces))];
	wire.unsteady = one_in(&dice, 4);
	outbox_heartbeat = heartbeats[random_below(&dice, lengthof(heartbeats))];
	outbox_in_flight_messages = one_in(&dice, 3) ? (int) random_from(&dice, 1, 5) : 1000;
	outbox_in_flight_per_key = (int) random_from(&dice, 1, 3);
	gate_chance = one_in(&dice, 3) ? 3 : 1000;

	message_count = (int) random_from(&dice, 1, one_in(&dice, 4) ? MAX_MESSAGES - 1 : 12);
	memset(messages, 0, sizeof(messages));
	done_count = 0;
	backlog_head = backlog_tail = 0;
	for (int id = 1; id <= message_count; id++)
	{
		messages[id].size = random_below(&dice, one_in(&dice, 40) && wire.piece != 1 && wire.piece != 3 ? 30000 : 200);
		messages[id].key = keys[random_below(&dice, lengthof(keys))];
		backlog[backlog_tail++] = id;
	}
	now = BEGINNING;
	ready = false;
	gate_opens = DT_NOEND;
	memset(&stall, 0, sizeof(stall));
	context = AllocSetContextCreate(TopMemoryContext, "conversation", ALLOCSET_DEFAULT_SIZES);
	batch = outbox_batch_create(context);
	channel = &batch->channels[0];
	broker = outbox_broker_create(context, "outbox/fuzz");
	peer_init(&dice, message_count, (int) random_from(&dice, 1, 3));
	change_settings();
}

/* Would the worker's wait return at once? */
static bool
socket_is_ready(void)
{
	uint32		wanted = outbox_broker_wanted(broker);

	if (wire.fd < 0 || wire.hanging)
		return false;
	return ((wanted & WL_SOCKET_READABLE) && wire_readable()) ||
		((wanted & WL_SOCKET_WRITEABLE) && wire_writable());
}

/* The clock is set back, and all plans with it. */
static void
set_clock_back(TimestampTz back)
{
	now -= back;
	stall.since -= back;
	outbox_batch_follow_clock(batch, back);
	if (gate_opens != DT_NOEND)
		gate_opens -= back;
	peer_follow_clock(back);
}

/* Nothing moves: let time pass until somebody wants to act. */
static void
let_time_pass(void)
{
	TimestampTz deadline = Min(outbox_broker_deadline(broker), peer_deadline());

	deadline = Min(deadline, outbox_stall_deadline(&stall, batch, channel, broker));
	deadline = Min(deadline, gate_opens);
	if (deadline <= now || socket_is_ready())
		return;
	if (deadline == DT_NOEND)
	{
		conversation_failed("nobody will ever do anything again");
		return;
	}
	now = deadline;
	if (one_in(&dice, 8))
		now += MS(random_below(&dice, 50));
	if (one_in(&dice, 500))
		set_clock_back(MS(random_below(&dice, 5000)));
}

static void
turn(void)
{
	peer_turn(now);
	outbox_broker_turn(broker, now);
	take_events();
	record();
	publish();
	outbox_broker_turn(broker, now);
	take_events();
	record();
}

static bool
finished(void)
{
	return done_count == message_count && batch->head == batch->tail;
}

static void
check_memory(void)
{
	size_t		limit = 12 * 1024 * 1024;

	/* the batch itself, the buffers of the connection, and what is in flight */
	if (shim_peak_bytes() > limit)
		conversation_failed("%zu bytes of memory", shim_peak_bytes());
}

/* What is left once everything is delivered is what was there at the beginning. */
static void
check_remains(void)
{
	size_t		left;
	size_t		belong;

	outbox_broker_close(broker);
	if (wire.fd >= 0 || outbox_broker_socket(broker) != PGINVALID_SOCKET)
		conversation_failed("a socket is left open");
	if (shim_external_fds() != 0)
		conversation_failed("%d descriptors are left reserved", shim_external_fds());

	/* Made anew, both have as many pieces; but for the output, which comes with its use. */
	left = shim_chunks(context) - (outbox_broker_output(broker)->data != NULL);
	(void) outbox_batch_create(context);
	outbox_broker_configure(outbox_broker_create(context, "outbox/fuzz"));
	belong = shim_chunks(context) - left - (outbox_broker_output(broker)->data != NULL);
	if (left != belong)
		conversation_failed("%zu pieces of memory where %zu belong", left, belong);
}

static void
finish(void)
{
	if (failure[0] == '\0')
		check_memory();
	if (failure[0] == '\0')
		check_remains();
	outbox_broker_close(broker);
	MemoryContextDelete(context);
	if (failure[0] == '\0' && shim_chunks(TopMemoryContext) != 0)
		conversation_failed("memory is left outside of the conversation");
	peer_free();
	stats.conversations++;
	stats.connections += wire.connections;
	stats.messages += message_count;
	if (peer.has_struck)
	{
		stats.struck[peer.kind]++;
		stats.survived[peer.kind]++;
	}
	if (failure[0] == '\0')
		return;
	stats.failures++;
	printf("conversation " UINT64_FORMAT " failed: %s\n"
		   "  (connection %d, peer: %s, %d of %d messages, again with --seed " UINT64_FORMAT " --conversations 1)\n",
		   seed, failure, wire.connections, hostility_names[failed_kind], done_count, message_count, seed);
	fflush(stdout);
}

static void
conversation(void)
{
	int			spin = 0;
	int			changes_left = 3;

	begin();
	for (int turns = 0; failure[0] == '\0' && !finished(); turns++)
	{
		uint64		moved = wire.moved;
		uint64		before = effects;
		int			state = outbox_broker_state(broker);
		TimestampTz then = now;

		turn();
		stats.turns++;
		if (changes_left > 0 && one_in(&dice, 1000))
		{
			changes_left--;
			change_settings();
		}
		if (turns > MAX_TURNS)
			conversation_failed("more than %d turns", MAX_TURNS);
		if (wire.moved == moved && effects == before && state == (int) outbox_broker_state(broker))
			let_time_pass();
		spin = wire.moved == moved && effects == before && now == then ? spin + 1 : 0;
		if (spin > MAX_SPIN)
			conversation_failed("turns without effect in state %d", state);
	}
	finish();
}

/* ---- the program ---- */

static void
say_seed(void)
{
	fprintf(stderr, "in the conversation with --seed " UINT64_FORMAT " --conversations 1\n", seed);
}

static void
crashed(int signal_number)
{
	say_seed();
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

static void
hanging(int signal_number)
{
	fputs("a conversation hangs\n", stderr);
	say_seed();
	abort();
}

static void
print_table(uint64 first)
{
	printf("%-32s %13s %15s\n", "hostile act", "connections", "kept to the end");
	for (int i = KIND_NONE + 1; i < KINDS; i++)
		printf("  %-30s %13" PRIu64 " %15" PRIu64 "\n",
			   hostility_names[i], stats.struck[i], stats.survived[i]);
	printf("%-32s %13s\n", "connection lost because", "connections");
	for (size_t i = 0; i < lengthof(reasons); i++)
		if (stats.ended[i] > 0)
			printf("  %-30s %13" PRIu64 "\n", reasons[i], stats.ended[i]);
	printf(UINT64_FORMAT " messages, " UINT64_FORMAT " confirmed by a peer that never had them, "
		   UINT64_FORMAT " connections, " UINT64_FORMAT " turns, seeds from " UINT64_FORMAT "\n",
		   stats.messages, stats.lies, stats.connections, stats.turns, first);
}

static void
run(uint64 first, uint64 count, uint64 step)
{
	for (seed = first; seed - first < count; seed += step)
	{
		alarm(WATCHDOG_S);
		conversation();
	}
	alarm(0);
	wire_free();
}

/* Several processes share the work; each writes its numbers into a pipe. */
static bool
run_jobs(uint64 first, uint64 count, int jobs)
{
	bool		good = true;
	int			fds[2];

	if (pipe(fds) != 0)
		return false;
	for (int i = 0; i < jobs; i++)
	{
		fflush(stdout);
		if (fork() == 0)
		{
			run(first + i, count - i, jobs);
			exit(write(fds[1], &stats, sizeof(stats)) == sizeof(stats) ? 0 : 1);
		}
	}
	close(fds[1]);
	for (int i = 0; i < jobs; i++)
	{
		Statistics	part;
		uint64	   *sum = (uint64 *) &stats;

		if (read(fds[0], &part, sizeof(part)) != sizeof(part))
			break;
		for (size_t j = 0; j < sizeof(stats) / sizeof(uint64); j++)
			sum[j] += ((uint64 *) &part)[j];
	}
	close(fds[0]);
	for (int i = 0; i < jobs; i++)
	{
		int			status;

		if (wait(&status) < 0 || status != 0)
			good = false;
	}
	return good;
}

/* Inputs for decode_fuzzer to begin with. */
static int
write_corpus(const char *directory)
{
	Bytes		input = {0};

	for (int i = 0; i < 300; i++)
	{
		char		path[1024];
		FILE	   *out;

		dice.state = i;
		input.len = 0;
		put_fuzzer_input(&input, &dice);
		snprintf(path, sizeof(path), "%s/%03d", directory, i);
		out = fopen(path, "w");
		if (out == NULL || fwrite(input.data, 1, input.len, out) != input.len || fclose(out) != 0)
		{
			perror(path);
			return 1;
		}
	}
	free(input.data);
	return 0;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{"seed", required_argument, NULL, 's'},
		{"conversations", required_argument, NULL, 'n'},
		{"jobs", required_argument, NULL, 'j'},
		{"verbose", no_argument, NULL, 'v'},
		{"write-corpus", required_argument, NULL, 'c'},
		{0}
	};
	uint64		first = (uint64) (time(NULL) % 100000) * 100000;
	uint64		count = 10000;
	int			jobs = 1;
	int			option;
	bool		good = true;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (option == 's')
			first = strtoull(optarg, NULL, 10);
		else if (option == 'n')
			count = strtoull(optarg, NULL, 10);
		else if (option == 'j')
			jobs = atoi(optarg);
		else if (option == 'v')
			verbose = true;
		else if (option == 'c')
			return write_corpus(optarg);
		else
			return 2;
	}
	__sanitizer_set_death_callback(say_seed);
	signal(SIGABRT, crashed);
	signal(SIGALRM, hanging);
	printf("conversations from seed " UINT64_FORMAT "\n", first);
	if (jobs > 1)
		good = run_jobs(first, count, jobs);
	else
		run(first, count, 1);
	print_table(first);
	if (!good)
		puts("a process ended in an error, see above");
	printf(UINT64_FORMAT " conversations, " UINT64_FORMAT " failures\n",
		   stats.conversations, stats.failures + (good ? 0 : 1));
	return good && stats.failures == 0 && stats.conversations == count ? 0 : 1;
}
