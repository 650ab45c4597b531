/*
 * consumer.c
 *		What the benchmarks receive with: writes down when each message arrived and
 *		how its body begins, and costs the machine as little as it can.
 *
 *		Reads frame by frame, since amqp_consume_message() copies each message;
 *		acknowledges in multiples, when nothing more is at hand or when half of
 *		PREFETCH is due; keeps what it writes in memory, a megabyte of it, until
 *		nothing arrives for a moment. Ends at SIGTERM, or after --count messages,
 *		and tells:
 *
 *			messages N ready R first F last L
 *
 *		in microseconds since the epoch: R when the broker began to accept
 *		connections (within RETRY_MS, if it did not from the start), F and L the
 *		arrival of the first and of the last message.
 */
#include "amqp_client.h"

#include <inttypes.h>
#include <signal.h>

#define RETRY_MS	10			/* between two attempts to connect */
#define PREFETCH	1000
#define QUIET_MS	100			/* nothing for so long: write to the file */
#define BODY_KEPT	40			/* bytes written down of a body */

typedef struct Options
{
	const char *uri;
	const char *queue;
	const char *file;
	int64_t		count;
	double		wait;			/* seconds to wait for the broker */
} Options;

static Options options = {
	.uri = DEFAULT_URI,
	.queue = "bench",
};

typedef struct Arrivals
{
	FILE	   *file;
	int64_t		count;
	int64_t		first;
	int64_t		last;
	uint64_t	tag;			/* of the message at hand, or the last one */
	uint64_t	whole;			/* of the last one that is here in full */
	uint64_t	acked;
	uint64_t	body_left;
	size_t		kept;
	char		body[BODY_KEPT];
} Arrivals;

static volatile sig_atomic_t stopped = 0;
static int64_t clock_shift;

static void
on_sigterm(int signal_number)
{
	(void) signal_number;
	stopped = 1;
}

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "consumer: %s: %s\n", what, why);
	exit(1);
}

static int64_t
monotonic_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/*
 * The time as pgbench tells it: of the monotonic clock, and shifted once to the
 * one on the wall, which may be slewed meanwhile.
 */
static int64_t
time_us(void)
{
	return monotonic_us() + clock_shift;
}

static void
arrived(Arrivals *arrivals)
{
	arrivals->last = time_us();
	arrivals->whole = arrivals->tag;
	if (arrivals->count++ == 0)
		arrivals->first = arrivals->last;
	if (arrivals->file)
		fprintf(arrivals->file, "%" PRId64 " %.*s\n", arrivals->last,
				(int) arrivals->kept, arrivals->body);
}

static void
take_frame(Arrivals *arrivals, const amqp_frame_t *frame)
{
	switch (frame->frame_type)
	{
		case AMQP_FRAME_METHOD:
			if (frame->payload.method.id != AMQP_BASIC_DELIVER_METHOD)
				fail("consuming", amqp_method_name(frame->payload.method.id));
			arrivals->tag = ((amqp_basic_deliver_t *) frame->payload.method.decoded)->delivery_tag;
			arrivals->kept = 0;
			return;
		case AMQP_FRAME_HEADER:
			arrivals->body_left = frame->payload.properties.body_size;
			break;
		case AMQP_FRAME_BODY:
			{
				amqp_bytes_t part = frame->payload.body_fragment;
				size_t		room = BODY_KEPT - arrivals->kept;
				size_t		keep = part.len < room ? part.len : room;

				memcpy(arrivals->body + arrivals->kept, part.bytes, keep);
				arrivals->kept += keep;
				arrivals->body_left -= part.len;
				break;
			}
		default:
			return;
	}
	if (arrivals->body_left == 0)
		arrived(arrivals);
}

/* Everything up to the last message that is whole. */
static void
acknowledge(Arrivals *arrivals, amqp_connection_state_t conn)
{
	if (arrivals->whole <= arrivals->acked)
		return;
	if (amqp_basic_ack(conn, CHANNEL, arrivals->whole, true) != AMQP_STATUS_OK)
		fail("acknowledging", "the connection is gone");
	arrivals->acked = arrivals->whole;
}

static void
consume(Arrivals *arrivals, amqp_connection_state_t conn)
{
	struct timeval quiet = {0, QUIET_MS * 1000};

	amqp_basic_qos(conn, CHANNEL, 0, PREFETCH, false);
	if (amqp_get_rpc_reply(conn).reply_type != AMQP_RESPONSE_NORMAL)
		fail("basic.qos", reply_text(amqp_get_rpc_reply(conn)));
	amqp_basic_consume(conn, CHANNEL, amqp_cstring_bytes(options.queue), amqp_empty_bytes,
					   false, false, false, amqp_empty_table);
	if (amqp_get_rpc_reply(conn).reply_type != AMQP_RESPONSE_NORMAL)
		fail("basic.consume", reply_text(amqp_get_rpc_reply(conn)));
	while (!stopped && (options.count == 0 || arrivals->count < options.count))
	{
		amqp_frame_t frame;
		int			rc;

		if (arrivals->whole - arrivals->acked >= PREFETCH / 2 ||
			!(amqp_frames_enqueued(conn) || amqp_data_in_buffer(conn)))
			acknowledge(arrivals, conn);
		if (arrivals->body_left == 0)
			amqp_maybe_release_buffers(conn);
		rc = amqp_simple_wait_frame_noblock(conn, &frame, &quiet);
		if (rc == AMQP_STATUS_OK)
			take_frame(arrivals, &frame);
		else if (rc != AMQP_STATUS_TIMEOUT)
			fail("consuming", amqp_error_string2(rc));
		else if (arrivals->file)
			fflush(arrivals->file);
	}
	acknowledge(arrivals, conn);
}

/* A connection, and when the attempt began that gave it. */
static amqp_connection_state_t
connect_and_wait(int64_t *ready)
{
	int64_t		deadline = monotonic_us() + (int64_t) (options.wait * 1e6);

	for (;;)
	{
		struct timespec pause = {0, RETRY_MS * 1000000};
		const char *error = "";
		amqp_connection_state_t conn;

		*ready = time_us();
		conn = client_connect(options.uri, &error);
		if (conn != NULL)
			return conn;
		if (stopped || monotonic_us() > deadline)
			fail("cannot connect", error);
		nanosleep(&pause, NULL);
	}
}

static void
parse_options(int argc, char **argv)
{
	for (int i = 1; i < argc; i += 2)
	{
		const char *value = argv[i + 1];

		if (i + 1 >= argc)
			fail(argv[i], "needs a value");
		if (strcmp(argv[i], "--uri") == 0)
			options.uri = value;
		else if (strcmp(argv[i], "--queue") == 0)
			options.queue = value;
		else if (strcmp(argv[i], "--file") == 0)
			options.file = value;
		else if (strcmp(argv[i], "--count") == 0)
			options.count = atoll(value);
		else if (strcmp(argv[i], "--wait") == 0)
			options.wait = atof(value);
		else
			fail(argv[i], "unknown option (--uri --queue --file --count --wait)");
	}
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_sigterm};
	Arrivals	arrivals = {0};
	amqp_connection_state_t conn;
	int64_t		ready;

	parse_options(argc, argv);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	clock_shift = now_us() - monotonic_us();
	if (options.file)
	{
		arrivals.file = fopen(options.file, "w");
		if (arrivals.file == NULL)
			fail("cannot write", options.file);
		setvbuf(arrivals.file, NULL, _IOFBF, 1 << 20);
	}
	conn = connect_and_wait(&ready);
	consume(&arrivals, conn);
	if (arrivals.file && fclose(arrivals.file) != 0)
		fail("cannot write", options.file);
	/* the handshake makes sure that the last ack was read */
	amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(conn);
	printf("messages %" PRId64 " ready %" PRId64 " first %" PRId64 " last %" PRId64 "\n",
		   arrivals.count, ready, arrivals.first, arrivals.last);
	return 0;
}
