/*
 * amqptool.c
 *		The tests' own hands and eyes at the broker: declare, publish, count, and
 *		above all "consume", which writes down every message that arrives.
 */
#include "amqp_client.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <unistd.h>

#define BODY_SHOWN 200			/* bytes of a body that consume writes down */
#define MAX_TABLE 16			/* arguments on the command line */

static volatile sig_atomic_t stopped = 0;

static void
on_sigterm(int signo)
{
	(void) signo;
	stopped = 1;
}

static void
usage(void)
{
	fputs("usage: amqptool [--uri URI] VERB ...\n"
		  "  ping [--wait SECONDS]\n"
		  "  declare-queue NAME [classic|quorum|stream] [durable] [KEY=VALUE ...]\n"
		  "  delete-queue NAME\n"
		  "  declare-exchange NAME TYPE [KEY=VALUE ...]\n"
		  "  delete-exchange NAME\n"
		  "  bind QUEUE EXCHANGE KEY\n"
		  "  unbind QUEUE EXCHANGE KEY\n"
		  "  purge QUEUE\n"
		  "  count QUEUE\n"
		  "  publish EXCHANGE KEY BODY [--count N]\n"
		  "  get QUEUE [--wait SECONDS]\n"
		  "  consume QUEUE FILE [--count N] [--idle-exit SECONDS] [--prefetch N]\n"
		  "                     [--no-ack] [--never-ack] [--exclusive]\n"
		  "consume appends one line per message, before it acknowledges it:\n"
		  "  microseconds, message_id, x-outbox-id, redelivered, routing key, body\n"
		  "and reconnects for ever.  get prints one message with all its properties.\n",
		  stderr);
	exit(2);
}

static void
fail(const char *format,...)
{
	va_list		args;

	fputs("amqptool: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void
check(amqp_connection_state_t conn, const char *what)
{
	amqp_rpc_reply_t reply = amqp_get_rpc_reply(conn);

	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail("%s: %s", what, reply_text(reply));
}

static void
pause_ms(int ms)
{
	struct timespec ts = {ms / 1000, (long) (ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

/*
 * command line
 */
typedef struct Arguments
{
	const char *uri;
	int64_t		count;
	double		idle_exit;		/* < 0: never */
	double		wait;
	int			prefetch;
	bool		no_ack;
	bool		never_ack;
	bool		exclusive;
	int			argc;			/* what is left: the verb and its operands */
	char	   *argv[64];
} Arguments;

static void
parse_arguments(int argc, char **argv, Arguments *a)
{
	*a = (Arguments) {.uri = getenv("AMQP_URI"), .count = -1, .idle_exit = -1,
		.prefetch = 1000};
	if (a->uri == NULL)
		a->uri = DEFAULT_URI;
	for (int i = 1; i < argc; i++)
	{
		char	   *arg = argv[i];
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (strncmp(arg, "--", 2) != 0)
		{
			if (a->argc >= (int) (sizeof(a->argv) / sizeof(a->argv[0])))
				usage();
			a->argv[a->argc++] = arg;
			continue;
		}
		if (strcmp(arg, "--no-ack") == 0)
			a->no_ack = true;
		else if (strcmp(arg, "--never-ack") == 0)
			a->never_ack = true;
		else if (strcmp(arg, "--exclusive") == 0)
			a->exclusive = true;
		else if (value == NULL)
			usage();
		else
		{
			i++;
			if (strcmp(arg, "--uri") == 0)
				a->uri = value;
			else if (strcmp(arg, "--count") == 0)
				a->count = atoll(value);
			else if (strcmp(arg, "--idle-exit") == 0)
				a->idle_exit = atof(value);
			else if (strcmp(arg, "--wait") == 0)
				a->wait = atof(value);
			else if (strcmp(arg, "--prefetch") == 0)
				a->prefetch = atoi(value);
			else
				usage();
		}
	}
	if (a->argc < 1)
		usage();
}

static void
need_operands(const Arguments *a, int n)
{
	if (a->argc - 1 < n)
		usage();
}

static void
set_string(amqp_table_entry_t *entry, const char *key, const char *value)
{
	entry->key = amqp_cstring_bytes(key);
	entry->value.kind = AMQP_FIELD_KIND_UTF8;
	entry->value.value.bytes = amqp_cstring_bytes(value);
}

/* KEY=VALUE: true and false are booleans, digits a number, the rest a string. */
static void
add_argument(amqp_table_t *table, char *arg)
{
	char	   *value = strchr(arg, '=');
	char	   *end;
	amqp_table_entry_t *entry = &table->entries[table->num_entries];
	long long	number;

	if (value == NULL || table->num_entries == MAX_TABLE)
		usage();
	*value++ = '\0';
	set_string(entry, arg, value);
	number = strtoll(value, &end, 10);
	if (strcmp(value, "true") == 0 || strcmp(value, "false") == 0)
	{
		entry->value.kind = AMQP_FIELD_KIND_BOOLEAN;
		entry->value.value.boolean = value[0] == 't';
	}
	else if (*value != '\0' && *end == '\0')
	{
		entry->value.kind = AMQP_FIELD_KIND_I64;
		entry->value.value.i64 = number;
	}
	table->num_entries++;
}

/*
 * the short verbs
 */
static int
verb_ping(Arguments *a)
{
	int64_t		deadline = now_us() + (int64_t) (a->wait * 1e6);
	const char *error = "";

	for (;;)
	{
		amqp_connection_state_t conn = client_connect(a->uri, &error);

		if (conn != NULL)
		{
			amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
			amqp_destroy_connection(conn);
			return 0;
		}
		if (now_us() >= deadline)
			fail("%s", error);
		pause_ms(20);
	}
}

static int
verb_declare_queue(Arguments *a)
{
	amqp_table_entry_t entries[MAX_TABLE + 1];
	amqp_table_t table = {0, entries};
	bool		durable = false;
	amqp_connection_state_t conn;

	need_operands(a, 1);
	for (int i = 2; i < a->argc; i++)
	{
		char	   *arg = a->argv[i];

		if (strcmp(arg, "durable") == 0)
			durable = true;
		else if (strcmp(arg, "quorum") == 0 || strcmp(arg, "stream") == 0)
		{
			if (table.num_entries == MAX_TABLE)
				usage();
			set_string(&entries[table.num_entries++], "x-queue-type", arg);
			durable = true;
		}
		else if (strcmp(arg, "classic") != 0)
			add_argument(&table, arg);
	}
	conn = client_connect_or_exit(a->uri);
	amqp_queue_declare(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]), false,
					   durable, false, false, table);
	check(conn, "declare queue");
	return 0;
}

static int
verb_declare_exchange(Arguments *a)
{
	amqp_table_entry_t entries[MAX_TABLE];
	amqp_table_t table = {0, entries};
	amqp_connection_state_t conn;

	need_operands(a, 2);
	for (int i = 3; i < a->argc; i++)
		add_argument(&table, a->argv[i]);
	conn = client_connect_or_exit(a->uri);
	amqp_exchange_declare(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]),
						  amqp_cstring_bytes(a->argv[2]), false, true, false,
						  false, table);
	check(conn, "declare exchange");
	return 0;
}

static int
verb_delete_queue(Arguments *a)
{
	amqp_connection_state_t conn;

	need_operands(a, 1);
	conn = client_connect_or_exit(a->uri);
	amqp_queue_delete(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]), false, false);
	check(conn, "delete queue");
	return 0;
}

static int
verb_delete_exchange(Arguments *a)
{
	amqp_connection_state_t conn;

	need_operands(a, 1);
	conn = client_connect_or_exit(a->uri);
	amqp_exchange_delete(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]), false);
	check(conn, "delete exchange");
	return 0;
}

static int
verb_bind(Arguments *a)
{
	bool		bind = strcmp(a->argv[0], "bind") == 0;
	amqp_bytes_t queue;
	amqp_bytes_t exchange;
	amqp_bytes_t key;
	amqp_connection_state_t conn;

	need_operands(a, 3);
	queue = amqp_cstring_bytes(a->argv[1]);
	exchange = amqp_cstring_bytes(a->argv[2]);
	key = amqp_cstring_bytes(a->argv[3]);
	conn = client_connect_or_exit(a->uri);
	if (bind)
		amqp_queue_bind(conn, CHANNEL, queue, exchange, key, amqp_empty_table);
	else
		amqp_queue_unbind(conn, CHANNEL, queue, exchange, key, amqp_empty_table);
	check(conn, a->argv[0]);
	return 0;
}

static int
verb_purge(Arguments *a)
{
	amqp_connection_state_t conn;

	need_operands(a, 1);
	conn = client_connect_or_exit(a->uri);
	amqp_queue_purge(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]));
	check(conn, "purge");
	return 0;
}

/* Messages that are ready; those handed to a consumer are not counted. */
static int
verb_count(Arguments *a)
{
	amqp_connection_state_t conn;
	amqp_queue_declare_ok_t *ok;

	need_operands(a, 1);
	conn = client_connect_or_exit(a->uri);
	ok = amqp_queue_declare(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]), true,
							false, false, false, amqp_empty_table);
	check(conn, "count");
	printf("%u\n", ok->message_count);
	return 0;
}

static int
verb_publish(Arguments *a)
{
	amqp_basic_properties_t properties = {._flags = AMQP_BASIC_DELIVERY_MODE_FLAG,
	.delivery_mode = 2};
	amqp_connection_state_t conn;

	need_operands(a, 3);
	conn = client_connect_or_exit(a->uri);
	for (int64_t i = 0; i < (a->count < 0 ? 1 : a->count); i++)
	{
		int			rc = amqp_basic_publish(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]),
											amqp_cstring_bytes(a->argv[2]), false, false,
											&properties, amqp_cstring_bytes(a->argv[3]));

		if (rc != AMQP_STATUS_OK)
			fail("publish: %s", amqp_error_string2(rc));
	}
	/* the close handshake proves that all of it was read */
	amqp_channel_close(conn, CHANNEL, AMQP_REPLY_SUCCESS);
	amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	return 0;
}

/*
 * get: one message, with everything it carries
 */
static void
print_escaped(FILE *out, const void *data, size_t len)
{
	const char *p = data;

	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) p[i];

		if (c == '\t')
			fputs("\\t", out);
		else if (c == '\n')
			fputs("\\n", out);
		else if (c == '\\')
			fputs("\\\\", out);
		else if (c < 0x20 || c == 0x7f)
			fprintf(out, "\\x%02x", c);
		else
			fputc(c, out);
	}
}

static void
print_bytes(FILE *out, amqp_bytes_t bytes)
{
	print_escaped(out, bytes.bytes, bytes.len);
}

/* A value with its AMQP type: "string:x", "int:1", "table:{a=int:1}". */
static void
print_field(const amqp_field_value_t *value)
{
	switch (value->kind)
	{
		case AMQP_FIELD_KIND_BOOLEAN:
			printf("bool:%s", value->value.boolean ? "true" : "false");
			break;
		case AMQP_FIELD_KIND_I8:
			printf("int:%d", value->value.i8);
			break;
		case AMQP_FIELD_KIND_I16:
			printf("int:%d", value->value.i16);
			break;
		case AMQP_FIELD_KIND_I32:
			printf("int:%" PRId32, value->value.i32);
			break;
		case AMQP_FIELD_KIND_I64:
			printf("int:%" PRId64, value->value.i64);
			break;
		case AMQP_FIELD_KIND_F32:
			printf("double:%.9g", value->value.f32);
			break;
		case AMQP_FIELD_KIND_F64:
			printf("double:%.17g", value->value.f64);
			break;
		case AMQP_FIELD_KIND_DECIMAL:
			printf("decimal:%" PRIu32 "e-%u", value->value.decimal.value,
				   value->value.decimal.decimals);
			break;
		case AMQP_FIELD_KIND_TIMESTAMP:
			printf("timestamp:%" PRIu64, value->value.u64);
			break;
		case AMQP_FIELD_KIND_UTF8:
			fputs("string:", stdout);
			print_bytes(stdout, value->value.bytes);
			break;
		case AMQP_FIELD_KIND_BYTES:
			fputs("bytes:", stdout);
			print_bytes(stdout, value->value.bytes);
			break;
		case AMQP_FIELD_KIND_VOID:
			fputs("null:", stdout);
			break;
		case AMQP_FIELD_KIND_ARRAY:
			fputs("array:[", stdout);
			for (int i = 0; i < value->value.array.num_entries; i++)
			{
				if (i > 0)
					fputc(',', stdout);
				print_field(&value->value.array.entries[i]);
			}
			fputc(']', stdout);
			break;
		case AMQP_FIELD_KIND_TABLE:
			fputs("table:{", stdout);
			for (int i = 0; i < value->value.table.num_entries; i++)
			{
				if (i > 0)
					fputc(',', stdout);
				print_bytes(stdout, value->value.table.entries[i].key);
				fputc('=', stdout);
				print_field(&value->value.table.entries[i].value);
			}
			fputc('}', stdout);
			break;
		default:
			printf("kind-%d:", value->kind);
			break;
	}
}

static void
print_property(const char *name, bool present, amqp_bytes_t bytes)
{
	if (!present)
		return;
	printf("%s=", name);
	print_bytes(stdout, bytes);
	fputc('\n', stdout);
}

static void
print_properties(const amqp_basic_properties_t *p)
{
#define TEXT(field, FLAG) \
	print_property(#field, (p->_flags & AMQP_BASIC_##FLAG##_FLAG) != 0, p->field)
	TEXT(content_type, CONTENT_TYPE);
	TEXT(content_encoding, CONTENT_ENCODING);
	TEXT(correlation_id, CORRELATION_ID);
	TEXT(reply_to, REPLY_TO);
	TEXT(expiration, EXPIRATION);
	TEXT(message_id, MESSAGE_ID);
	TEXT(type, TYPE);
	TEXT(user_id, USER_ID);
	TEXT(app_id, APP_ID);
#undef TEXT
	if (p->_flags & AMQP_BASIC_DELIVERY_MODE_FLAG)
		printf("delivery_mode=%u\n", p->delivery_mode);
	if (p->_flags & AMQP_BASIC_PRIORITY_FLAG)
		printf("priority=%u\n", p->priority);
	if (p->_flags & AMQP_BASIC_TIMESTAMP_FLAG)
		printf("timestamp=%" PRIu64 "\n", p->timestamp);
	if (p->_flags & AMQP_BASIC_HEADERS_FLAG)
		for (int i = 0; i < p->headers.num_entries; i++)
		{
			fputs("header.", stdout);
			print_bytes(stdout, p->headers.entries[i].key);
			fputc('=', stdout);
			print_field(&p->headers.entries[i].value);
			fputc('\n', stdout);
		}
}

static int
verb_get(Arguments *a)
{
	int64_t		deadline = now_us() + (int64_t) (a->wait * 1e6);
	amqp_bytes_t queue;
	amqp_connection_state_t conn;
	amqp_rpc_reply_t reply;
	amqp_basic_get_ok_t *ok;
	amqp_message_t message;

	need_operands(a, 1);
	queue = amqp_cstring_bytes(a->argv[1]);
	conn = client_connect_or_exit(a->uri);
	for (;;)
	{
		reply = amqp_basic_get(conn, CHANNEL, queue, true);
		if (reply.reply_type != AMQP_RESPONSE_NORMAL)
			fail("get: %s", reply_text(reply));
		if (reply.reply.id == AMQP_BASIC_GET_OK_METHOD)
			break;
		if (now_us() >= deadline)
			fail("queue \"%s\" is empty", a->argv[1]);
		pause_ms(5);
	}
	ok = reply.reply.decoded;
	printf("exchange=");
	print_bytes(stdout, ok->exchange);
	printf("\nrouting_key=");
	print_bytes(stdout, ok->routing_key);
	printf("\nredelivered=%d\n", ok->redelivered ? 1 : 0);
	reply = amqp_read_message(conn, CHANNEL, &message, 0);
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail("get: %s", reply_text(reply));
	print_properties(&message.properties);
	printf("body_length=%zu\nbody=", message.body.len);
	print_bytes(stdout, message.body);
	fputc('\n', stdout);
	return 0;
}

/*
 * consume: write down every message, then acknowledge it
 */
typedef struct Consumer
{
	const Arguments *a;
	FILE	   *file;
	int64_t		taken;			/* messages written down */
	int64_t		last_arrival;
	uint64_t	unacked_tag;	/* newest delivery written but not acknowledged */
} Consumer;

static int64_t
outbox_id(const amqp_basic_properties_t *p)
{
	if (p->_flags & AMQP_BASIC_HEADERS_FLAG)
		for (int i = 0; i < p->headers.num_entries; i++)
		{
			const amqp_table_entry_t *e = &p->headers.entries[i];

			if (e->key.len == strlen("x-outbox-id") &&
				memcmp(e->key.bytes, "x-outbox-id", e->key.len) == 0 &&
				e->value.kind == AMQP_FIELD_KIND_I64)
				return e->value.value.i64;
		}
	return 0;
}

static void
write_down(Consumer *c, const amqp_envelope_t *envelope)
{
	const amqp_basic_properties_t *p = &envelope->message.properties;
	amqp_bytes_t body = envelope->message.body;

	c->last_arrival = now_us();
	fprintf(c->file, "%" PRId64 "\t", c->last_arrival);
	if (p->_flags & AMQP_BASIC_MESSAGE_ID_FLAG)
		print_bytes(c->file, p->message_id);
	fprintf(c->file, "\t%" PRId64 "\t%d\t", outbox_id(p), envelope->redelivered ? 1 : 0);
	print_bytes(c->file, envelope->routing_key);
	fputc('\t', c->file);
	print_escaped(c->file, body.bytes, body.len < BODY_SHOWN ? body.len : BODY_SHOWN);
	fputc('\n', c->file);
	c->taken++;
}

/* What was written down reaches the file, and then the broker may forget it. */
static bool
settle(Consumer *c, amqp_connection_state_t conn)
{
	uint64_t	tag = c->unacked_tag;

	if (tag == 0)
		return true;
	if (fflush(c->file) != 0)
		fail("cannot write \"%s\": %s", c->a->argv[2], strerror(errno));
	c->unacked_tag = 0;
	if (c->a->no_ack || c->a->never_ack)
		return true;
	return amqp_basic_ack(conn, CHANNEL, tag, true) == AMQP_STATUS_OK;
}

/* May more be read without waiting for the network? */
static bool
more_at_hand(amqp_connection_state_t conn)
{
	return amqp_frames_enqueued(conn) || amqp_data_in_buffer(conn);
}

static bool
consumer_done(const Consumer *c)
{
	if (stopped || (c->a->count >= 0 && c->taken >= c->a->count))
		return true;
	return c->a->idle_exit >= 0 &&
		now_us() - c->last_arrival > (int64_t) (c->a->idle_exit * 1e6);
}

/* Returns when the consumer is done or the connection is gone. */
static void
consume_connection(Consumer *c, amqp_connection_state_t conn)
{
	const Arguments *a = c->a;
	struct timeval tick = {0, 100000};
	uint64_t	since_ack = 0;

	if (!a->no_ack)
		amqp_basic_qos(conn, CHANNEL, 0, (uint16_t) a->prefetch, false);
	amqp_basic_consume(conn, CHANNEL, amqp_cstring_bytes(a->argv[1]), amqp_empty_bytes,
					   false, a->no_ack, a->exclusive, amqp_empty_table);
	if (amqp_get_rpc_reply(conn).reply_type != AMQP_RESPONSE_NORMAL)
		return;
	c->unacked_tag = 0;
	while (!consumer_done(c))
	{
		amqp_envelope_t envelope;
		amqp_rpc_reply_t reply;

		if (!more_at_hand(conn) || since_ack >= (uint64_t) a->prefetch / 2)
		{
			if (!settle(c, conn))
				return;
			since_ack = 0;
		}
		amqp_maybe_release_buffers(conn);
		reply = amqp_consume_message(conn, &envelope, &tick, 0);
		if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		{
			write_down(c, &envelope);
			c->unacked_tag = envelope.delivery_tag;
			since_ack++;
			amqp_destroy_envelope(&envelope);
		}
		else if (reply.reply_type != AMQP_RESPONSE_LIBRARY_EXCEPTION ||
				 reply.library_error != AMQP_STATUS_TIMEOUT)
			return;
	}
	if (settle(c, conn))
	{
		/* the handshake makes sure that the last ack was read */
		struct timeval limit = {2, 0};

		amqp_set_rpc_timeout(conn, &limit);
		amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	}
}

static int
verb_consume(Arguments *a)
{
	Consumer	c = {.a = a};
	struct sigaction action = {.sa_handler = on_sigterm};

	need_operands(a, 2);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	c.file = fopen(a->argv[2], "a");
	if (c.file == NULL)
		fail("cannot open \"%s\": %s", a->argv[2], strerror(errno));
	setvbuf(c.file, NULL, _IOFBF, 1 << 20);
	c.last_arrival = now_us();
	while (!consumer_done(&c))
	{
		const char *error = "";
		amqp_connection_state_t conn = client_connect(a->uri, &error);

		if (conn != NULL)
		{
			consume_connection(&c, conn);
			amqp_destroy_connection(conn);
		}
		if (fflush(c.file) != 0)
			fail("cannot write \"%s\": %s", a->argv[2], strerror(errno));
		if (!consumer_done(&c))
			pause_ms(50);
	}
	return fclose(c.file) == 0 ? 0 : 1;
}

int
main(int argc, char **argv)
{
	static const struct
	{
		const char *name;
		int			(*run) (Arguments *);
	}			verbs[] = {
		{"ping", verb_ping},
		{"declare-queue", verb_declare_queue},
		{"delete-queue", verb_delete_queue},
		{"declare-exchange", verb_declare_exchange},
		{"delete-exchange", verb_delete_exchange},
		{"bind", verb_bind},
		{"unbind", verb_bind},
		{"purge", verb_purge},
		{"count", verb_count},
		{"publish", verb_publish},
		{"get", verb_get},
		{"consume", verb_consume},
	};
	Arguments	a;

	signal(SIGPIPE, SIG_IGN);
	parse_arguments(argc, argv, &a);
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (strcmp(a.argv[0], verbs[i].name) == 0)
			return verbs[i].run(&a);
	usage();
}
