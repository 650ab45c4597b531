/*
 * settings.c
 *		Every setting of outbox: name, default, limits, who may set it, and
 *		what it means to an operator.
 *
 *		Owns: the C variables of settings.h and the rules that a value must
 *		keep before it is accepted. Step: none; every step reads the variables.
 *		On entry: called once by _PG_init, in the postmaster or, where the
 *		library is not preloaded, in a backend that calls one of our functions.
 *		Never: raise from a check hook (the postmaster has nobody to catch it),
 *		touch a catalog there, or let a password in outbox.uri into an error, a
 *		view or the output of SHOW. Must agree: docs/reference.md ("Settings")
 *		says the same in the same words; broker.c parses outbox.uri with the
 *		same outbox_uri_parse(); enqueue.c checks outbox.headers in full, here
 *		only its syntax is.
 *
 *		What may differ per database is PGC_SUSET, since ALTER DATABASE ... SET
 *		refuses PGC_SIGHUP.  A worker sees such a value when it starts.
 */
#include "pgcompat.h"

#include <limits.h>

#include "common/jsonapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/guc.h"

#include "settings.h"
#include "shmem.h"
#include "uri.h"

/*
 * How deep outbox.headers may nest to be handed to the JSON parser, which
 * raises when the stack runs out.  More than properties.c allows.
 */
#define HEADERS_MAX_DEPTH	64

#define ONE_HOUR_MS			(60 * 60 * 1000)
#define ONE_DAY_MS			(24 * ONE_HOUR_MS)
#define TEN_YEARS_S			(10 * 365 * 24 * 60 * 60)

char	   *outbox_uri;
char	   *outbox_passfile;
char	   *outbox_headers;
bool		outbox_enabled;
int			outbox_durability;
int			outbox_connections;
int			outbox_in_flight_messages;
int			outbox_in_flight_bytes;
int			outbox_in_flight_per_key;
int			outbox_max_message_size;
int			outbox_poll_interval;
int			outbox_connect_timeout;
int			outbox_heartbeat;
int			outbox_confirm_timeout;
int			outbox_max_attempts;
int			outbox_retry_delay_min;
int			outbox_retry_delay_max;
int			outbox_segment_size;
int			outbox_retention;
int			outbox_max_databases;

static bool check_uri(char **newval, void **extra, GucSource source);
static bool check_headers(char **newval, void **extra, GucSource source);
static const char *show_uri(void);

typedef struct StringSetting
{
	const char *name;
	char	  **variable;
	GucContext	context;
	int			flags;
	GucStringCheckHook check;
	GucShowHook show;
	const char *short_desc;
	const char *long_desc;
} StringSetting;

typedef struct IntSetting
{
	const char *name;
	int		   *variable;
	int			default_value;
	int			min;
	int			max;
	int			flags;			/* the unit */
	const char *short_desc;
	const char *long_desc;
} IntSetting;

static const struct config_enum_entry durability_options[] = {
	{"local", OUTBOX_DURABILITY_LOCAL, false},
	{"standbys", OUTBOX_DURABILITY_STANDBYS, false},
	{NULL, 0, false}
};

/* All of them are empty by default. */
static const StringSetting string_settings[] = {
	{
		/* pg_settings would show a password to pg_monitor, in reset_val */
		"outbox.uri", &outbox_uri, PGC_SUSET,
		GUC_SUPERUSER_ONLY | GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
		check_uri, show_uri,
		"Sets the RabbitMQ broker to publish to.",
		"One or several amqp:// URIs, separated by commas, that are "
		"tried in turn. Empty: messages are stored but not published. Put "
		"passwords into outbox.passfile."
	},
	{
		"outbox.passfile", &outbox_passfile, PGC_SUSET, GUC_SUPERUSER_ONLY,
		NULL, NULL,
		"Sets the file that holds the passwords of the users in outbox.uri.",
		"Lines of host:port:vhost:user:password, where * matches anything. Only "
		"its owner may have access to the file. A relative path starts at the "
		"data directory."
	},
	{
		"outbox.headers", &outbox_headers, PGC_USERSET, 0,
		check_headers, NULL,
		"Sets headers that are added to every message.",
		"A JSON object, such as {\"traceparent\": \"...\"}. A header of the same "
		"name given to outbox.enqueue() wins."
	},
};

/* All of them are PGC_SUSET. */
static const IntSetting int_settings[] = {
	{
		"outbox.connections", &outbox_connections,
		1, 1, OUTBOX_CONNECTIONS_MAX, 0,
		"Sets over how many connections to the broker messages are published at once.",
		"With 1, messages leave in order. With more, only messages with the same "
		"ordering key do: each key has one connection, and what has no key takes any."
	},
	{
		"outbox.in_flight_messages", &outbox_in_flight_messages,
		1000, 1, 100000, 0,
		"Sets how many messages may be unconfirmed at a time.",
		"Publishing waits for the broker's confirms when this number or "
		"outbox.in_flight_bytes is reached, whichever is first."
	},
	{
		"outbox.in_flight_bytes", &outbox_in_flight_bytes,
		4096, 64, 1024 * 1024, GUC_UNIT_KB,
		"Sets how many bytes of messages may be unconfirmed at a time.",
		"Bounds the memory of the worker too. A single larger message is "
		"published alone."
	},
	{
		"outbox.in_flight_per_key", &outbox_in_flight_per_key,
		1, 1, 100000, 0,
		"Sets how many messages of one ordering key may be unconfirmed at a time.",
		"With 1, messages of a key arrive in order even if one has to be "
		"retried. More is faster, but messages already sent overtake one that "
		"the broker refuses."
	},
	{
		"outbox.max_message_size", &outbox_max_message_size,
		16 * 1024, 1, 512 * 1024, GUC_UNIT_KB,
		"Sets the largest payload that outbox.enqueue() accepts.",
		"Keep it at or below max_message_size of the broker, which is 16 MB by "
		"default from RabbitMQ 4.0 on and 128 MB before."
	},
	{
		"outbox.poll_interval", &outbox_poll_interval,
		5000, 10, ONE_HOUR_MS, GUC_UNIT_MS,
		"Sets how often the worker looks for messages without being woken.",
		"Commits wake the worker at once; this is the safety net."
	},
	{
		"outbox.connect_timeout", &outbox_connect_timeout,
		5000, 100, ONE_HOUR_MS, GUC_UNIT_MS,
		"Sets how long each step of connecting to the broker may take.",
		"The steps are the connection with the name look-up, the login, and "
		"the opening of the channel."
	},
	{
		"outbox.heartbeat", &outbox_heartbeat,
		15, 1, 3600, GUC_UNIT_S,
		"Sets the heartbeat interval asked of the broker.",
		"A connection on which nothing arrives for two intervals to three is given up. "
		"Values below 5 s give false alarms."
	},
	{
		"outbox.confirm_timeout", &outbox_confirm_timeout,
		60000, 100, ONE_DAY_MS, GUC_UNIT_MS,
		"Sets how long a message may be in flight without an answer.",
		"After that the connection is made anew, and messages with that "
		"exchange and routing key are set aside until the broker answers for "
		"one of them. Time during which the broker blocks publishing does not "
		"count."
	},
	{
		"outbox.max_attempts", &outbox_max_attempts,
		10, 1, 1000000, 0,
		"Sets how often a refused message is tried.",
		"After that many attempts it moves to outbox.dead_letter. What is "
		"refused because of its exchange, or by a nack, is not given up."
	},
	{
		"outbox.retry_delay_min", &outbox_retry_delay_min,
		1000, 10, ONE_DAY_MS, GUC_UNIT_MS,
		"Sets the delay before a refused message is tried again.",
		"It doubles with each attempt, up to outbox.retry_delay_max."
	},
	{
		"outbox.retry_delay_max", &outbox_retry_delay_max,
		5 * 60 * 1000, 10, ONE_DAY_MS, GUC_UNIT_MS,
		"Sets the longest delay between two attempts of a refused message.",
		"A value below outbox.retry_delay_min counts as outbox.retry_delay_min."
	},
	{
		"outbox.segment_size", &outbox_segment_size,
		64 * 1024, 64, 1024 * 1024 * 1024, GUC_UNIT_KB,
		"Sets the size at which the next segment is opened.",
		"A full segment is emptied when all of its messages are settled and older "
		"than outbox.retention."
	},
	{
		"outbox.retention", &outbox_retention,
		0, 0, TEN_YEARS_S, GUC_UNIT_S,
		"Sets how long messages are kept after they were enqueued.",
		"They remain in the view outbox.message. With 0 a segment is emptied as "
		"soon as all of its messages are settled."
	},
};

/*
 * May this source of a value be read by any user?  pg_db_role_setting and
 * pg_proc.proconfig are open to everybody.  PGC_S_TEST is the command that
 * writes them (ALTER DATABASE, ALTER ROLE, CREATE FUNCTION ... SET), the
 * others are what a session finds there at its start.
 */
static bool
is_world_readable(GucSource source)
{
	return source == PGC_S_TEST ||
		source == PGC_S_GLOBAL ||
		source == PGC_S_DATABASE ||
		source == PGC_S_USER ||
		source == PGC_S_DATABASE_USER;
}

/*
 * Check hook of outbox.uri.  The message is always set, as the default one
 * quotes the value.
 */
static bool
check_uri(char **newval, void **extra, GucSource source)
{
	OutboxUri  *uris = NULL;
	const char *error = NULL;
	bool		has_password = false;
	bool		has_tls = false;
	int			count;

	count = outbox_uri_parse(*newval, &uris, &error);
	if (count < 0)
	{
		GUC_check_errmsg("invalid value for parameter \"%s\": %s",
						 "outbox.uri", error);
		return false;
	}
	for (int i = 0; i < count; i++)
	{
		has_password = has_password || uris[i].password != NULL;
		has_tls = has_tls || uris[i].tls;
	}
	outbox_uri_free(uris, count);

	if (has_tls)
	{
		GUC_check_errmsg("outbox.uri with amqps:// is not supported: this version does not speak TLS");
		GUC_check_errhint("Use amqp:// within a trusted network, or through a tunnel.");
		return false;
	}
	if (has_password && is_world_readable(source))
	{
		GUC_check_errmsg("outbox.uri with a password cannot be set for a database, role or function");
		GUC_check_errdetail("Every user could read it in the system catalogs.");
		GUC_check_errhint("Leave the password out of outbox.uri and put it into the file named by outbox.passfile.");
		return false;
	}
	return true;
}

/*
 * Show hook of outbox.uri: the value with *** for each password.  A value that
 * passed the check hook has no raw @ or / in user or password.
 */
static const char *
show_uri(void)
{
	const char *rest = outbox_uri;
	const char *mark;
	StringInfoData shown;

	initStringInfo(&shown);
	while ((mark = strstr(rest, "://")) != NULL)
	{
		const char *authority = mark + strlen("://");
		size_t		len = strcspn(authority, "@/?#, \t\r\n");
		const char *colon = memchr(authority, ':', len);

		if (authority[len] == '@' && colon != NULL)
		{
			appendBinaryStringInfo(&shown, rest, colon + 1 - rest);
			appendStringInfoString(&shown, "***");
		}
		else
			appendBinaryStringInfo(&shown, rest, authority + len - rest);
		rest = authority + len;
	}
	appendStringInfoString(&shown, rest);
	return shown.data;
}

/*
 * How deep does this JSON text nest?  Only to be trusted as an upper bound
 * of what a parser will find.
 */
static int
json_depth(const char *json)
{
	bool		in_string = false;
	int			depth = 0;
	int			deepest = 0;

	for (const char *c = json; *c != '\0'; c++)
	{
		if (in_string)
		{
			if (*c == '\\' && c[1] != '\0')
				c++;
			else if (*c == '"')
				in_string = false;
		}
		else if (*c == '"')
			in_string = true;
		else if (*c == '{' || *c == '[')
			deepest = Max(deepest, ++depth);
		else if (*c == '}' || *c == ']')
			depth--;
	}
	return deepest;
}

/*
 * Is this the text of a JSON object?  The lexer's structure is filled here
 * because its constructor has another signature in each release.
 */
static bool
is_json_object(char *json)
{
	JsonLexContext lex = {0};

	if (json[strspn(json, " \t\r\n")] != '{' ||
		json_depth(json) > HEADERS_MAX_DEPTH)
		return false;

	lex.input = lex.token_terminator = lex.line_start = json;
	lex.input_length = strlen(json);
	lex.input_encoding = GetDatabaseEncoding();
	lex.line_number = 1;
	return pg_parse_json(&lex, &nullSemAction) == JSON_SUCCESS;
}

/*
 * Check hook of outbox.headers: syntax only.  What the headers may be is
 * checked by enqueue.c, where raising is allowed.
 */
static bool
check_headers(char **newval, void **extra, GucSource source)
{
	if ((*newval)[0] == '\0' || is_json_object(*newval))
		return true;

	GUC_check_errdetail("outbox.headers must be empty or a JSON object.");
	return false;
}

static void
define_string_settings(void)
{
	for (int i = 0; i < lengthof(string_settings); i++)
	{
		const StringSetting *s = &string_settings[i];

		DefineCustomStringVariable(s->name, s->short_desc, s->long_desc,
								   s->variable, "", s->context, s->flags,
								   s->check, NULL, s->show);
	}
}

static void
define_int_settings(void)
{
	for (int i = 0; i < lengthof(int_settings); i++)
	{
		const IntSetting *s = &int_settings[i];

		DefineCustomIntVariable(s->name, s->short_desc, s->long_desc,
								s->variable, s->default_value, s->min, s->max,
								PGC_SUSET, s->flags, NULL, NULL, NULL);
	}
}

static void
define_other_settings(void)
{
	DefineCustomBoolVariable("outbox.enabled",
							 "Lets messages be published.",
							 "When off, the worker closes its connection; "
							 "messages are stored and wait.",
							 &outbox_enabled, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomEnumVariable("outbox.durability",
							 "Sets how durable a commit must be before its messages are published.",
							 "local: flushed to the disk of this server. standbys: also "
							 "flushed by the synchronous standbys, if there are any.",
							 &outbox_durability, OUTBOX_DURABILITY_STANDBYS,
							 durability_options,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	/*
	 * Sizes shared memory. Loaded later than that, the library must not define
	 * it as PGC_POSTMASTER, but a file that sets it is right all the same.
	 */
	DefineCustomIntVariable("outbox.max_databases",
							"Sets for how many databases there may be a worker.",
							"Each also takes one of max_worker_processes.",
							&outbox_max_databases, 64, 1, 10000,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0, NULL, NULL, NULL);
}

void
outbox_settings_init(void)
{
	define_string_settings();
	define_int_settings();
	define_other_settings();
	MarkGUCPrefixReserved("outbox");
}
