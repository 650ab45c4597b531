/*
 * properties.c
 *		The AMQP properties of a message: from jsonb to librabbitmq's
 *		structure, and the rules they must keep.
 *
 *		Owns: the list of properties a caller may set, every limit on them, and
 *		the headers that we add.  Those of the caller: headers.c.
 *		Step: 1 (enqueue.c calls outbox_properties_check) and 5 (publish calls
 *		outbox_properties_build).
 *		On entry: properties and headers are detoasted.  In a database whose
 *		encoding is not UTF-8 the caller is in a transaction.
 *		Never: let through at step 1 what the protocol or the broker would
 *		refuse at step 5, where it would close the channel for all other
 *		messages too; nor depend on a setting of the session (TimeZone,
 *		DateStyle), since step 5 happens in another one.
 *		Must agree: amqp_decode.c finds x-outbox-id in what the broker returns;
 *		docs/reference.md lists properties and types.
 *
 *		Both steps run the same conversion, so what was accepted can be built.
 *		Errors therefore sit inside it, although step 5 never meets them.
 */
#include "pgcompat.h"

#include <ctype.h>
#include <math.h>

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "amqp_headers.h"
#include "buffer.h"
#include "headers.h"
#include "json_scalar.h"
#include "properties.h"
#include "amqp_codec.h"
#include "settings.h"
#include "uri.h"


#define UNIX_EPOCH_USECS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* Left free in the content header for headers that are added later. */
#define CONTENT_HEADER_MARGIN 100

/* The end of the year 9999.  Milliseconds given for seconds are beyond it. */
#define TIMESTAMP_MAX		INT64CONST(253402300799)

#define UUID_TEXT_LEN		36
#define OWN_HEADERS			2	/* x-outbox-id, x-outbox-attempt */

/* What is built for a message, in one allocation where it has no headers. */
typedef struct BuiltProperties
{
	amqp_basic_properties_t amqp;
	bool		mandatory;
	char		message_id[UUID_TEXT_LEN];
	amqp_table_entry_t own_headers[OWN_HEADERS];
} BuiltProperties;

typedef struct KnownProperty KnownProperty;

struct KnownProperty
{
	const char *name;
	void		(*read) (const KnownProperty *property,
						 const JsonbValue *value, BuiltProperties *built);
	amqp_flags_t flag;
	size_t		offset;			/* texts: of its amqp_bytes_t */
};

static void read_text(const KnownProperty *property,
					  const JsonbValue *value, BuiltProperties *built);
static void read_delivery_mode(const KnownProperty *property,
							   const JsonbValue *value, BuiltProperties *built);
static void read_expiration(const KnownProperty *property,
							const JsonbValue *value, BuiltProperties *built);
static void read_mandatory(const KnownProperty *property,
						   const JsonbValue *value, BuiltProperties *built);
static void read_priority(const KnownProperty *property,
						  const JsonbValue *value, BuiltProperties *built);
static void read_timestamp(const KnownProperty *property,
						   const JsonbValue *value, BuiltProperties *built);

#define TEXT_PROPERTY(field, flag) \
	{#field, read_text, flag, offsetof(amqp_basic_properties_t, field)}

static const KnownProperty known_properties[] = {
	TEXT_PROPERTY(content_type, AMQP_BASIC_CONTENT_TYPE_FLAG),
	TEXT_PROPERTY(content_encoding, AMQP_BASIC_CONTENT_ENCODING_FLAG),
	TEXT_PROPERTY(correlation_id, AMQP_BASIC_CORRELATION_ID_FLAG),
	TEXT_PROPERTY(reply_to, AMQP_BASIC_REPLY_TO_FLAG),
	{"expiration", read_expiration, AMQP_BASIC_EXPIRATION_FLAG, 0},
	TEXT_PROPERTY(type, AMQP_BASIC_TYPE_FLAG),
	TEXT_PROPERTY(user_id, AMQP_BASIC_USER_ID_FLAG),
	TEXT_PROPERTY(app_id, AMQP_BASIC_APP_ID_FLAG),
	{"priority", read_priority, AMQP_BASIC_PRIORITY_FLAG, 0},
	{"timestamp", read_timestamp, AMQP_BASIC_TIMESTAMP_FLAG, 0},
	{"delivery_mode", read_delivery_mode, AMQP_BASIC_DELIVERY_MODE_FLAG, 0},
	{"mandatory", read_mandatory, 0, 0},
};

/*
 * Properties
 */

static bool
is_string(const JsonbValue *string, const char *text)
{
	return string->val.string.len == strlen(text) &&
		memcmp(string->val.string.val, text, string->val.string.len) == 0;
}

static const char *
json_type_name(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvString:
			return "string";
		case jbvNumeric:
			return "number";
		case jbvBool:
			return "boolean";
		case jbvBinary:
			return JsonContainerIsArray(value->val.binary.data) ? "array" : "object";
		default:
			return "value";
	}
}

static void
refuse_property(const char *name, const JsonbValue *value, const char *rule)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("property \"%s\" must be %s", name, rule),
			 value->type == jbvBool || value->type == jbvBinary ?
			 errdetail("It is a JSON %s.", json_type_name(value)) : 0));
}

static int64
integer_property(const char *name, const JsonbValue *value,
				 int64 min, int64 max, const char *rule)
{
	int64		number = 0;

	if (value->type != jbvNumeric ||
		!outbox_json_is_int64(outbox_json_number(value), &number) ||
		number < min || number > max)
		refuse_property(name, value, rule);
	return number;
}

static void
read_text(const KnownProperty *property,
		  const JsonbValue *value, BuiltProperties *built)
{
	amqp_bytes_t text;

	if (value->type != jbvString)
		refuse_property(property->name, value, "a string");

	text = outbox_json_text(value);
	if (text.len > OUTBOX_SHORT_STRING_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("property \"%s\" is too long", property->name),
				 errdetail("It has %zu bytes in UTF-8, at most %d are possible.",
						   text.len, OUTBOX_SHORT_STRING_MAX)));
	memcpy((char *) &built->amqp + property->offset, &text, sizeof(text));
}

static void
read_priority(const KnownProperty *property,
			  const JsonbValue *value, BuiltProperties *built)
{
	built->amqp.priority = integer_property(property->name, value, 0, 255,
											"an integer between 0 and 255");
}

static void
read_delivery_mode(const KnownProperty *property,
				   const JsonbValue *value, BuiltProperties *built)
{
	static const char *const rule = "1, 2, \"transient\" or \"persistent\"";

	if (value->type == jbvString && is_string(value, "transient"))
		built->amqp.delivery_mode = AMQP_DELIVERY_NONPERSISTENT;
	else if (value->type == jbvString && is_string(value, "persistent"))
		built->amqp.delivery_mode = AMQP_DELIVERY_PERSISTENT;
	else
		built->amqp.delivery_mode =
			integer_property(property->name, value,
							 AMQP_DELIVERY_NONPERSISTENT,
							 AMQP_DELIVERY_PERSISTENT, rule);
}

static void
read_mandatory(const KnownProperty *property,
			   const JsonbValue *value, BuiltProperties *built)
{
	if (value->type != jbvBool)
		refuse_property(property->name, value, "true or false");
	built->mandatory = value->val.boolean;
}

/*
 * A time to live in milliseconds.  AMQP wants the number as text, so people
 * pass it either way.  RabbitMQ answers 406 to anything else.
 */
static void
read_expiration(const KnownProperty *property,
				const JsonbValue *value, BuiltProperties *built)
{
	static const char *const rule =
	"a number of milliseconds between 0 and 4294967295";
	int64		number;
	char	   *text;

	if (value->type == jbvString)
	{
		text = pnstrdup(value->val.string.val, value->val.string.len);
		if (text[0] == '\0' || strspn(text, "0123456789") != strlen(text) ||
			!outbox_json_is_int64(text, &number) || number > PG_UINT32_MAX)
			refuse_property(property->name, value, rule);
	}
	else
		number = integer_property(property->name, value,
								  0, PG_UINT32_MAX, rule);

	text = psprintf(INT64_FORMAT, number);
	built->amqp.expiration = outbox_amqp_run(text, strlen(text));
}

/*
 * Is this a time with its offset from UTC, in the one form that means the same
 * in every session?  'd' stands for a digit.
 */
static bool
is_iso_time(const char *text)
{
	static const char date_time[] = "dddd-dd-ddTdd:dd:dd";
	static const char *const zones[] = {"Z", "+dd", "+dddd", "+dd:dd"};
	int			pos = 0;

	for (; date_time[pos] != '\0'; pos++)
	{
		if (date_time[pos] == 'd' ? !isdigit((unsigned char) text[pos]) :
			date_time[pos] == 'T' ? text[pos] != 'T' && text[pos] != ' ' :
			text[pos] != date_time[pos])
			return false;
	}
	if (text[pos] == '.')
	{
		size_t		digits = strspn(text + pos + 1, "0123456789");

		if (digits == 0)
			return false;
		pos += 1 + digits;
	}
	for (int z = 0; z < lengthof(zones); z++)
	{
		const char *t = text + pos;
		const char *zone = zones[z];

		while (*zone != '\0' &&
			   (*zone == 'd' ? isdigit((unsigned char) *t) :
				*zone == '+' ? *t == '+' || *t == '-' : *t == *zone))
			zone++, t++;
		if (*zone == '\0' && *t == '\0')
			return true;
	}
	return false;
}

static void
read_timestamp(const KnownProperty *property,
			   const JsonbValue *value, BuiltProperties *built)
{
	static const char *const rule =
	"a number of seconds since 1970 or an ISO 8601 time with its offset from UTC";
	TimestampTz time;
	Datum		parsed;
	char	   *text;

	if (value->type != jbvString)
	{
		built->amqp.timestamp = integer_property(property->name, value,
												 0, TIMESTAMP_MAX, rule);
		return;
	}

	text = pnstrdup(value->val.string.val, value->val.string.len);
	if (!is_iso_time(text))
		refuse_property(property->name, value, rule);
	parsed = DirectFunctionCall3(timestamptz_in,
								 CStringGetDatum(text),
								 ObjectIdGetDatum(InvalidOid),
								 Int32GetDatum(-1));
	time = DatumGetTimestampTz(parsed);
	time += UNIX_EPOCH_USECS;
	if (time < 0)
		refuse_property(property->name, value, rule);
	built->amqp.timestamp = time / USECS_PER_SEC;
}

static char *
known_property_names(void)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < lengthof(known_properties); i++)
		appendStringInfo(&names, "%s%s", i == 0 ? "" : ", ",
						 known_properties[i].name);
	return names.data;
}

static void
read_property(const JsonbValue *key, const JsonbValue *value,
			  BuiltProperties *built)
{
	for (int i = 0; i < lengthof(known_properties); i++)
	{
		const KnownProperty *property = &known_properties[i];

		if (!is_string(key, property->name))
			continue;
		if (value->type == jbvNull)
			return;
		property->read(property, value, built);
		built->amqp._flags |= property->flag;
		return;
	}

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized property \"%s\"", outbox_json_key_name(key)),
			 is_string(key, "message_id") ?
			 errhint("Use the argument message_id of outbox.enqueue().") :
			 errhint("Known properties: %s.", known_property_names())));
}

static void
read_properties(Jsonb *properties, BuiltProperties *built)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(properties))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("properties must be a JSON object")));

	it = JsonbIteratorInit(&properties->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		read_property(&key, &value, built);
	}
}

/*
 * The whole
 */

static void
put_message_id(const pg_uuid_t *uuid, BuiltProperties *built)
{
	static const char hex[] = "0123456789abcdef";
	char	   *out = built->message_id;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex[uuid->data[i] >> 4];
		*out++ = hex[uuid->data[i] & 0x0f];
	}
	built->amqp.message_id = outbox_amqp_run(built->message_id, UUID_TEXT_LEN);
	built->amqp._flags |= AMQP_BASIC_MESSAGE_ID_FLAG;
}

/*
 * x-outbox-id finds the message that the broker returns, and tells a consumer
 * the order of enqueueing; x-outbox-attempt tells it that there may be a first
 * copy.
 */
static void
put_own_headers(const OutboxMessage *message, BuiltProperties *built)
{
	amqp_table_t *table = &built->amqp.headers;
	amqp_table_entry_t *entry;

	entry = &table->entries[table->num_entries++];
	entry->key = outbox_amqp_run("x-outbox-id", strlen("x-outbox-id"));
	entry->value.kind = AMQP_FIELD_KIND_I64;
	entry->value.value.i64 = message->id;

	if (message->attempts < 1)
		return;
	entry = &table->entries[table->num_entries++];
	entry->key = outbox_amqp_run("x-outbox-attempt", strlen("x-outbox-attempt"));
	entry->value.kind = AMQP_FIELD_KIND_I32;
	entry->value.value.i32 = message->attempts + 1;
}

amqp_basic_properties_t *
outbox_properties_build(const OutboxMessage *message, bool *mandatory)
{
	BuiltProperties *built = palloc(sizeof(BuiltProperties));

	/* Fields without a flag are not looked at. */
	built->mandatory = true;
	built->amqp._flags =
		AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_HEADERS_FLAG;
	built->amqp.delivery_mode = AMQP_DELIVERY_PERSISTENT;
	built->amqp.headers.num_entries = 0;
	built->amqp.headers.entries = built->own_headers;

	if (message->content_type.data != NULL)
	{
		OutboxBytes text = outbox_utf8(message->content_type);

		built->amqp.content_type = outbox_amqp_run(text.data, text.len);
		built->amqp._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;
	}
	put_message_id(&message->message_id, built);
	if (message->properties != NULL)
		read_properties(message->properties, built);
	if (message->headers != NULL)
		outbox_headers_convert(message->headers, &built->amqp.headers, OWN_HEADERS);
	put_own_headers(message, built);

	*mandatory = built->mandatory;
	return &built->amqp;
}

/*
 * RabbitMQ closes the channel of a message whose user_id is not the user that
 * is logged in.  The name of that user is not for the caller to know.
 */
static void
check_user_id(const amqp_basic_properties_t *amqp)
{
	OutboxUri  *uris = NULL;
	const char *error = NULL;
	bool		valid = true;
	int			count;

	if ((amqp->_flags & AMQP_BASIC_USER_ID_FLAG) == 0)
		return;

	count = outbox_uri_parse(outbox_uri, &uris, &error);
	for (int i = 0; i < count; i++)
		valid = valid &&
			uris[i].user != NULL &&
			strlen(uris[i].user) == amqp->user_id.len &&
			memcmp(uris[i].user, amqp->user_id.bytes, amqp->user_id.len) == 0;
	if (count > 0)
		outbox_uri_free(uris, count);

	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("property \"user_id\" must be the user that outbox.uri names"),
				 errdetail("RabbitMQ refuses messages in the name of another user."),
				 errhint("Leave user_id out, or use app_id or a header.")));
}

/*
 * This name stands for a consumer on the channel that publishes.  We have
 * none, and RabbitMQ closes the channel.
 */
static void
check_reply_to(const amqp_basic_properties_t *amqp)
{
	static const char direct[] = "amq.rabbitmq.reply-to";

	if ((amqp->_flags & AMQP_BASIC_REPLY_TO_FLAG) != 0 &&
		amqp->reply_to.len == strlen(direct) &&
		memcmp(amqp->reply_to.bytes, direct, strlen(direct)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("property \"reply_to\" must not be \"%s\"", direct),
				 errdetail("Direct reply-to needs a consumer on the connection that publishes, which outbox does not have."),
				 errhint("Name a queue.")));
}

void
outbox_properties_check(const OutboxMessage *message)
{
	amqp_basic_properties_t *amqp;
	amqp_table_t given;
	bool		mandatory;
	int			size;

	amqp = outbox_properties_build(message, &mandatory);
	check_user_id(amqp);
	check_reply_to(amqp);

	/* Our own headers are the last. */
	given = amqp->headers;
	given.num_entries -= message->attempts < 1 ? 1 : OWN_HEADERS;
	outbox_headers_check(&given);

	/* A content header cannot be split. */
	size = outbox_amqp_content_header_size(amqp, OUTBOX_AMQP_FRAME_MAX);
	if (size < 0 || size > OUTBOX_AMQP_FRAME_MAX - CONTENT_HEADER_MARGIN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("headers and properties of the message are too large"),
				 errdetail("Encoded for AMQP they must fit into one frame of %d bytes.",
						   OUTBOX_AMQP_FRAME_MAX)));
}
