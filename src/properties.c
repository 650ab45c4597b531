/*
 * properties.c
 *		The AMQP properties and headers of a message: from jsonb to
 *		librabbitmq's structure, and the rules they must keep.
 *
 *		Owns: the list of properties a caller may set, the types that JSON
 *		values become, and every limit on them.
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
#include "properties.h"
#include "amqp_codec.h"
#include "settings.h"
#include "uri.h"

#define SHORT_STRING_MAX	255
#define HEADERS_MAX_DEPTH	32
#define RESERVED_PREFIX		"x-outbox-"

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
static void convert_value(amqp_field_value_t *field, const JsonbValue *value,
						  const JsonbValue *header, int depth);

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
 * Text
 */

OutboxBytes
outbox_properties_utf8(OutboxBytes text)
{
	char	   *converted;

	if (GetDatabaseEncoding() == PG_UTF8)
		return text;

	/* Every server encoding is a superset of ASCII. */
	for (uint32 i = 0; i < text.len; i++)
	{
		if (!IS_HIGHBIT_SET(text.data[i]))
			continue;
		converted = pg_server_to_any(text.data, text.len, PG_UTF8);
		if (converted != text.data)
		{
			text.data = converted;
			text.len = strlen(converted);
		}
		break;
	}
	return text;
}

static inline amqp_bytes_t
amqp_run(const char *data, size_t len)
{
	amqp_bytes_t run;

	run.len = len;
	run.bytes = unconstify(char *, data);
	return run;
}

static amqp_bytes_t
amqp_text(const JsonbValue *string)
{
	OutboxBytes text = {string->val.string.val, string->val.string.len};

	text = outbox_properties_utf8(text);
	return amqp_run(text.data, text.len);
}

static bool
is_string(const JsonbValue *string, const char *text)
{
	return string->val.string.len == strlen(text) &&
		memcmp(string->val.string.val, text, string->val.string.len) == 0;
}

/* A key for an error message: its beginning, if a caller made it very long. */
static char *
key_text(const JsonbValue *key)
{
	int			len = pg_mbcliplen(key->val.string.val, key->val.string.len,
								   NAMEDATALEN - 1);

	return pnstrdup(key->val.string.val, len);
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

static char *
number_text(const JsonbValue *number)
{
	Datum		numeric = NumericGetDatum(number->val.numeric);

	return DatumGetCString(DirectFunctionCall1(numeric_out, numeric));
}

/* Is this number written without a fraction, and does it fit into 64 bits? */
static bool
is_int64(const char *number, int64 *result)
{
	char	   *end;

	errno = 0;
	*result = strtoll(number, &end, 10);
	return errno == 0 && *end == '\0';
}

/*
 * Properties
 */

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
		!is_int64(number_text(value), &number) ||
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

	text = amqp_text(value);
	if (text.len > SHORT_STRING_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("property \"%s\" is too long", property->name),
				 errdetail("It has %zu bytes in UTF-8, at most %d are possible.",
						   text.len, SHORT_STRING_MAX)));
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
			!is_int64(text, &number) || number > PG_UINT32_MAX)
			refuse_property(property->name, value, rule);
	}
	else
		number = integer_property(property->name, value,
								  0, PG_UINT32_MAX, rule);

	text = psprintf(INT64_FORMAT, number);
	built->amqp.expiration = amqp_run(text, strlen(text));
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
			 errmsg("unrecognized property \"%s\"", key_text(key)),
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
 * Headers
 */

/* Integers stay integers as long as 64 bits hold them. */
static void
convert_number(amqp_field_value_t *field, const JsonbValue *value,
			   const JsonbValue *header)
{
	char	   *text = number_text(value);

	if (is_int64(text, &field->value.i64))
	{
		field->kind = AMQP_FIELD_KIND_I64;
		return;
	}

	field->kind = AMQP_FIELD_KIND_F64;
	field->value.f64 = strtod(text, NULL);
	if (isinf(field->value.f64))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number in header \"%s\" is out of range", key_text(header)),
				 errdetail("Numbers are sent as 64-bit integers or as double precision.")));
}

static void
convert_array(amqp_array_t *array, JsonbContainer *container,
			  const JsonbValue *header, int depth)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	value;

	array->num_entries = 0;
	array->entries = palloc(sizeof(amqp_field_value_t) *
							Max(JsonContainerSize(container), 1));
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			convert_value(&array->entries[array->num_entries++], &value,
						  header, depth);
	}
}

static amqp_bytes_t
header_name(const JsonbValue *key)
{
	amqp_bytes_t name = amqp_text(key);

	if (name.len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of a header must not be empty")));

	/* librabbitmq would write the length modulo 256 and all bytes. */
	if (name.len > SHORT_STRING_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("name of header \"%s\" is too long", key_text(key)),
				 errdetail("It has %zu bytes in UTF-8, at most %d are possible.",
						   name.len, SHORT_STRING_MAX)));
	return name;
}

/*
 * Append the members of a JSON object to a table that has room for them.
 * `header` is the header they are part of, NULL if they are the headers.
 */
static void
convert_members(amqp_table_t *table, JsonbContainer *container,
				const JsonbValue *header, int depth)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		amqp_table_entry_t *entry;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);

		entry = &table->entries[table->num_entries++];
		entry->key = header_name(&key);
		convert_value(&entry->value, &value, header ? header : &key, depth);
	}
}

static void
convert_container(amqp_field_value_t *field, JsonbContainer *container,
				  const JsonbValue *header, int depth)
{
	if (depth > HEADERS_MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("header \"%s\" is nested too deeply", key_text(header)),
				 errdetail("Arrays and objects can be nested %d deep.",
						   HEADERS_MAX_DEPTH)));

	if (JsonContainerIsArray(container))
	{
		field->kind = AMQP_FIELD_KIND_ARRAY;
		convert_array(&field->value.array, container, header, depth);
		return;
	}

	field->kind = AMQP_FIELD_KIND_TABLE;
	field->value.table.num_entries = 0;
	field->value.table.entries = palloc(sizeof(amqp_table_entry_t) *
										Max(JsonContainerSize(container), 1));
	convert_members(&field->value.table, container, header, depth);
}

/* `depth` counts the arrays and objects that are open around the value. */
static void
convert_value(amqp_field_value_t *field, const JsonbValue *value,
			  const JsonbValue *header, int depth)
{
	switch (value->type)
	{
		case jbvNull:
			field->kind = AMQP_FIELD_KIND_VOID;
			break;
		case jbvString:
			field->kind = AMQP_FIELD_KIND_UTF8;
			field->value.bytes = amqp_text(value);
			break;
		case jbvNumeric:
			convert_number(field, value, header);
			break;
		case jbvBool:
			field->kind = AMQP_FIELD_KIND_BOOLEAN;
			field->value.boolean = value->val.boolean;
			break;
		case jbvBinary:
			convert_container(field, value->val.binary.data,
							  header, depth + 1);
			break;
		default:
			elog(ERROR, "unexpected jsonb value type %d", (int) value->type);
	}
}

/* RabbitMQ reads CC and BCC as further routing keys and closes the channel if
 * they are anything else. */
static void
check_extra_routing_keys(const amqp_table_entry_t *entry)
{
	bool		valid = entry->value.kind == AMQP_FIELD_KIND_ARRAY;

	for (int i = 0; valid && i < entry->value.value.array.num_entries; i++)
	{
		const amqp_field_value_t *key = &entry->value.value.array.entries[i];

		valid = key->kind == AMQP_FIELD_KIND_UTF8 &&
			key->value.bytes.len <= SHORT_STRING_MAX;
	}
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%.*s\" must be an array of strings of at most %d bytes",
						(int) entry->key.len, (char *) entry->key.bytes,
						SHORT_STRING_MAX),
				 errdetail("RabbitMQ takes it for a list of routing keys.")));
}

/* Rules for headers as such, not for what is inside them. */
static void
check_headers(const amqp_table_t *headers)
{
	for (int i = 0; i < headers->num_entries; i++)
	{
		const amqp_table_entry_t *entry = &headers->entries[i];
		const char *name = entry->key.bytes;
		size_t		len = entry->key.len;

		if (len >= strlen(RESERVED_PREFIX) &&
			memcmp(name, RESERVED_PREFIX, strlen(RESERVED_PREFIX)) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header names that begin with \"%s\" are reserved",
							RESERVED_PREFIX)));
		if ((len == 2 && memcmp(name, "CC", 2) == 0) ||
			(len == 3 && memcmp(name, "BCC", 3) == 0))
			check_extra_routing_keys(entry);
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
	built->amqp.message_id = amqp_run(built->message_id, UUID_TEXT_LEN);
	built->amqp._flags |= AMQP_BASIC_MESSAGE_ID_FLAG;
}

static void
put_user_headers(Jsonb *headers, BuiltProperties *built)
{
	amqp_table_t *table = &built->amqp.headers;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));

	table->entries = palloc(sizeof(amqp_table_entry_t) *
							(JB_ROOT_COUNT(headers) + OWN_HEADERS));
	convert_members(table, &headers->root, NULL, 0);
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
	entry->key = amqp_run("x-outbox-id", strlen("x-outbox-id"));
	entry->value.kind = AMQP_FIELD_KIND_I64;
	entry->value.value.i64 = message->id;

	if (message->attempts < 1)
		return;
	entry = &table->entries[table->num_entries++];
	entry->key = amqp_run("x-outbox-attempt", strlen("x-outbox-attempt"));
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
		OutboxBytes text = outbox_properties_utf8(message->content_type);

		built->amqp.content_type = amqp_run(text.data, text.len);
		built->amqp._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;
	}
	put_message_id(&message->message_id, built);
	if (message->properties != NULL)
		read_properties(message->properties, built);
	if (message->headers != NULL)
		put_user_headers(message->headers, built);
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
	check_headers(&given);

	/* A content header cannot be split. */
	size = outbox_amqp_content_header_size(amqp, OUTBOX_AMQP_FRAME_MAX);
	if (size < 0 || size > OUTBOX_AMQP_FRAME_MAX - CONTENT_HEADER_MARGIN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("headers and properties of the message are too large"),
				 errdetail("Encoded for AMQP they must fit into one frame of %d bytes.",
						   OUTBOX_AMQP_FRAME_MAX)));
}
