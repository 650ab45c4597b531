/*
 * headers.c
 *		The headers of a message: from a JSON object to an AMQP table, and the
 *		rules they must keep.
 *
 *		Owns: which AMQP type a JSON value becomes, and the limits on names,
 *		nesting and numbers. Step: 1 and 5, as part of properties.c, which says
 *		what holds there. Must agree: docs/reference.md lists the types.
 */
#include "pgcompat.h"

#include <math.h>

#include "headers.h"
#include "json_scalar.h"

#define HEADERS_MAX_DEPTH	32
#define RESERVED_PREFIX		"x-outbox-"

static void convert_value(amqp_field_value_t *field, const JsonbValue *value,
						  const JsonbValue *header, int depth);

/* Integers stay integers as long as 64 bits hold them. */
static void
convert_number(amqp_field_value_t *field, const JsonbValue *value,
			   const JsonbValue *header)
{
	char	   *text = outbox_json_number(value);

	if (outbox_json_is_int64(text, &field->value.i64))
	{
		field->kind = AMQP_FIELD_KIND_I64;
		return;
	}

	field->kind = AMQP_FIELD_KIND_F64;
	field->value.f64 = strtod(text, NULL);
	if (!isfinite(field->value.f64))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number in header \"%s\" is out of range", outbox_json_key_name(header)),
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
	amqp_bytes_t name = outbox_json_text(key);

	if (name.len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of a header must not be empty")));

	/* librabbitmq would write the length modulo 256 and all bytes. */
	if (name.len > OUTBOX_SHORT_STRING_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("name of header \"%s\" is too long", outbox_json_key_name(key)),
				 errdetail("It has %zu bytes in UTF-8, at most %d are possible.",
						   name.len, OUTBOX_SHORT_STRING_MAX)));
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
				 errmsg("header \"%s\" is nested too deeply", outbox_json_key_name(header)),
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
			field->value.bytes = outbox_json_text(value);
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
			key->value.bytes.len <= OUTBOX_SHORT_STRING_MAX;
		if (valid && outbox_is_direct_reply_to(key->value.bytes.bytes, key->value.bytes.len))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header \"%.*s\" must not contain an address of direct reply-to",
							(int) entry->key.len, (char *) entry->key.bytes)));
	}
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%.*s\" must be an array of strings of at most %d bytes",
						(int) entry->key.len, (char *) entry->key.bytes,
						OUTBOX_SHORT_STRING_MAX),
				 errdetail("RabbitMQ takes it for a list of routing keys.")));
}

void
outbox_headers_check(const amqp_table_t *headers)
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

void
outbox_headers_convert(Jsonb *headers, amqp_table_t *table, int room)
{
	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));

	table->num_entries = 0;
	table->entries = palloc(sizeof(amqp_table_entry_t) *
							(JB_ROOT_COUNT(headers) + room));
	convert_members(table, &headers->root, NULL, 0);
}
