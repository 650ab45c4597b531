/*
 * plain_publisher.c
 *		The opponent: what a good program on plain librabbitmq reaches.
 *
 *		Publishes messages of one size from memory with amqp_basic_publish(),
 *		publisher confirms on, at most --window unconfirmed.  Properties and headers
 *		are those that outbox sends, for the broker reads them.  Confirms are read
 *		when the window is full, and otherwise now and then without waiting, so
 *		that the socket never has to be waited for without need.
 *
 *		With --rate it publishes at random moments, so many a second on average,
 *		and a body begins with when that was, in microseconds since the epoch.
 */
#include "amqp_client.h"

#include <inttypes.h>
#include <math.h>
#include <sys/resource.h>

#define LOOK_EVERY 64			/* publishes between two looks for confirms */

typedef struct Options
{
	const char *uri;
	const char *key;
	int64_t		count;
	int64_t		window;
	size_t		size;
	double		rate;			/* a second; 0: as fast as it goes */
} Options;

static Options options = {
	.uri = DEFAULT_URI,
	.key = "bench",
	.count = 500000,
	.window = 1000,
	.size = 200,
};

/*
 * Delivery tags that are unconfirmed, as a ring: acks may come in any order.
 * All tags up to `settled` are confirmed; done[tag % window] tells about the
 * others.
 */
static bool *done;
static uint64_t published = 0;
static uint64_t settled = 0;

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "plain_publisher: %s: %s\n", what, why);
	exit(1);
}

static void
on_ack(const amqp_basic_ack_t *ack)
{
	uint64_t	tag = ack->delivery_tag;

	if (tag == 0 || tag > published)
		fail("ack", "for a message never sent");
	if (ack->multiple)
	{
		for (uint64_t t = settled + 1; t < tag; t++)
			done[t % (uint64_t) options.window] = true;
	}
	done[tag % (uint64_t) options.window] = true;
	while (settled < published && done[(settled + 1) % (uint64_t) options.window])
	{
		settled++;
		done[settled % (uint64_t) options.window] = false;
	}
}

/* Read one frame; false if there was none within the timeout (NULL: for ever). */
static bool
read_confirm(amqp_connection_state_t conn, const struct timeval *timeout)
{
	amqp_frame_t frame;
	int			rc = amqp_simple_wait_frame_noblock(conn, &frame, timeout);

	if (rc == AMQP_STATUS_TIMEOUT)
		return false;
	if (rc != AMQP_STATUS_OK)
		fail("waiting for confirms", amqp_error_string2(rc));
	if (frame.frame_type == AMQP_FRAME_METHOD &&
		frame.payload.method.id == AMQP_BASIC_ACK_METHOD)
		on_ack(frame.payload.method.decoded);
	else
		fail("waiting for confirms", "the broker sent something else than an ack");
	return true;
}

/* Wait for one confirm and take all that are there. */
static void
wait_for_confirms(amqp_connection_state_t conn)
{
	static const struct timeval at_once = {0, 0};

	read_confirm(conn, NULL);
	while (read_confirm(conn, &at_once))
		;
	amqp_maybe_release_buffers(conn);
}

static void
look_for_confirms(amqp_connection_state_t conn)
{
	static const struct timeval at_once = {0, 0};

	while (read_confirm(conn, &at_once))
		;
}

/* Until the next message is due; its body tells when that is. */
static void
wait_for_moment(amqp_connection_state_t conn, amqp_bytes_t body)
{
	static int64_t moment = 0;
	char		text[24];
	int			len;
	int64_t		left;

	if (moment == 0)
		moment = now_us();
	moment += (int64_t) (-log(1 - drand48()) / options.rate * 1e6);
	while ((left = moment - now_us()) > 0)
	{
		struct timeval timeout = {left / 1000000, left % 1000000};

		read_confirm(conn, &timeout);
	}
	amqp_maybe_release_buffers(conn);
	len = snprintf(text, sizeof(text), "%" PRId64 " ", now_us());
	memcpy(body.bytes, text, (size_t) len < body.len ? (size_t) len : body.len);
}

static double
cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double) usage.ru_utime.tv_sec + (double) usage.ru_utime.tv_usec / 1e6 +
		(double) usage.ru_stime.tv_sec + (double) usage.ru_stime.tv_usec / 1e6;
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
		else if (strcmp(argv[i], "--key") == 0)
			options.key = value;
		else if (strcmp(argv[i], "--count") == 0)
			options.count = atoll(value);
		else if (strcmp(argv[i], "--window") == 0)
			options.window = atoll(value);
		else if (strcmp(argv[i], "--size") == 0)
			options.size = (size_t) atoll(value);
		else if (strcmp(argv[i], "--rate") == 0)
			options.rate = atof(value);
		else
			fail(argv[i], "unknown option (--uri --key --count --window --size --rate)");
	}
	if (options.window < 1 || options.count < 1)
		fail("options", "--window and --count must be at least 1");
}

int
main(int argc, char **argv)
{
	amqp_connection_state_t conn;
	amqp_table_entry_t id_header = {
		.key = amqp_cstring_bytes("x-outbox-id"),
		.value.kind = AMQP_FIELD_KIND_I64,
	};
	amqp_basic_properties_t properties = {
		._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG |
		AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_HEADERS_FLAG,
		.delivery_mode = 2,
		.headers = {1, &id_header},
		.content_type = amqp_cstring_bytes("application/octet-stream"),
	};
	amqp_bytes_t key;
	amqp_bytes_t body;
	char		id[37];
	int64_t		start;
	double		cpu;
	double		elapsed;

	parse_options(argc, argv);
	done = calloc((size_t) options.window, sizeof(bool));
	body = amqp_bytes_malloc(options.size);
	if (done == NULL || body.bytes == NULL)
		fail("start", "out of memory");
	memset(body.bytes, 'x', body.len);
	key = amqp_cstring_bytes(options.key);
	memcpy(id, "00000000-0000-7000-8000-000000000000", sizeof(id));
	properties.message_id = amqp_cstring_bytes(id);

	conn = client_connect_or_exit(options.uri);
	amqp_confirm_select(conn, CHANNEL);
	if (amqp_get_rpc_reply(conn).reply_type != AMQP_RESPONSE_NORMAL)
		fail("confirm.select", reply_text(amqp_get_rpc_reply(conn)));

	start = now_us();
	cpu = cpu_seconds();
	while (published < (uint64_t) options.count)
	{
		int			rc;

		if (published - settled >= (uint64_t) options.window)
			wait_for_confirms(conn);
		else if (published % LOOK_EVERY == 0)
			look_for_confirms(conn);
		if (options.rate > 0)
			wait_for_moment(conn, body);

		id_header.value.value.i64 = (int64_t) published + 1;
		rc = amqp_basic_publish(conn, CHANNEL, amqp_empty_bytes, key, true, false,
								&properties, body);
		if (rc != AMQP_STATUS_OK)
			fail("publish", amqp_error_string2(rc));
		published++;
	}
	while (settled < published)
		wait_for_confirms(conn);
	elapsed = (double) (now_us() - start) / 1e6;
	cpu = cpu_seconds() - cpu;

	printf("messages %" PRId64 " seconds %.3f rate %.0f cpu_us_per_message %.3f\n",
		   options.count, elapsed, (double) options.count / elapsed,
		   cpu * 1e6 / (double) options.count);
	amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(conn);
	return 0;
}
