/*
 * enqueue.c
 *		Step 1 of a message's path: outbox.enqueue() puts a row into the open
 *		segment, in the caller's transaction.
 *
 *		Owns: the four overloads of outbox.enqueue(), the checks of their
 *		arguments, and the parsed form of outbox.headers.
 *		On entry: any backend, any role that may EXECUTE the function, any
 *		search_path, inside functions and triggers too.
 *		Never: wait for anything outside the database; store what the protocol
 *		or the broker would refuse later.
 *		Must agree: cursor.c relies on the order of steps in store(), and
 *		segment.c on the lock it keeps, when it empties a segment; catalog.h
 *		numbers the columns; properties.c knows what the broker takes.
 *
 *		The row is inserted by outbox_catalog_insert(): no SPI (1.5 us per call
 *		dearer), no search_path to pin, no change of user, and no check of
 *		table privileges.  EXECUTE on the function is the privilege, so a
 *		producer can write messages and read none.  No triggers run either: any
 *		that the tables have are for rows that came another way.
 */
#include "pgcompat.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "commands/sequence.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "batch.h"
#include "catalog.h"
#include "faultpoint.h"
#include "properties.h"
#include "settings.h"
#include "shmem.h"
#include "uuid7.h"
#include "wake.h"

/* Arguments of outbox.enqueue(), in the order of sql/outbox.sql. */
#define ARG_EXCHANGE		0
#define ARG_ROUTING_KEY		1
#define ARG_PAYLOAD			2
#define ARG_HEADERS			3
#define ARG_ORDERING_KEY	4
#define ARG_DELIVER_AT		5
#define ARG_MESSAGE_ID		6
#define ARG_PROPERTIES		7

#define NAME_MAX_BYTES		255 /* a shortstr of AMQP */

/* The row to be, and whether each of its columns is null. */
typedef struct Row
{
	Datum		values[OUTBOX_MAX_COLUMNS];
	bool		nulls[OUTBOX_MAX_COLUMNS];
} Row;

PG_FUNCTION_INFO_V1(outbox_enqueue_jsonb);
PG_FUNCTION_INFO_V1(outbox_enqueue_json);
PG_FUNCTION_INFO_V1(outbox_enqueue_text);
PG_FUNCTION_INFO_V1(outbox_enqueue_bytea);

static void
set_column(Row *row, int attnum, Datum value)
{
	row->values[attnum - 1] = value;
	row->nulls[attnum - 1] = false;
}

/*
 * Arguments
 */

static void
require_argument(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* First thing in each overload: what needs no look at the values. */
static void
begin_enqueue(FunctionCallInfo fcinfo)
{
	PreventCommandDuringRecovery("outbox.enqueue()");
	PreventCommandIfReadOnly("outbox.enqueue()");
	PreventCommandIfParallelMode("outbox.enqueue()");

	require_argument(fcinfo, ARG_EXCHANGE, "exchange");
	require_argument(fcinfo, ARG_ROUTING_KEY, "routing_key");
	require_argument(fcinfo, ARG_PAYLOAD, "payload");
}

/* AMQP counts bytes of UTF-8.  A text value never contains a NUL. */
static void
take_name(FunctionCallInfo fcinfo, int arg, const char *name,
		  Row *row, int attnum)
{
	text	   *value = PG_GETARG_TEXT_PP(arg);
	OutboxBytes bytes = {VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)};

	bytes = outbox_utf8(bytes);
	if (bytes.len > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s is too long", name),
				 errdetail("It has %u bytes in UTF-8, at most %d are possible.",
						   bytes.len, NAME_MAX_BYTES)));
	set_column(row, attnum, PointerGetDatum(value));
}

/*
 * RabbitMQ hands such a message to its consumer and says all the same that no queue took
 * it; and if that consumer was on a node that is gone, it closes the connection.
 */
static void
refuse_direct_reply_to(text *routing_key)
{
	if (outbox_is_direct_reply_to(VARDATA_ANY(routing_key), VARSIZE_ANY_EXHDR(routing_key)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("routing_key must not be an address of direct reply-to"),
				 errdetail("Such an answer cannot be sent at least once: its consumer may be gone, and RabbitMQ does not confirm that it took it."),
				 errhint("Let the request name a queue in reply_to.")));
}

static void
take_names(FunctionCallInfo fcinfo, Row *row)
{
	take_name(fcinfo, ARG_EXCHANGE, "exchange", row, Anum_message_exchange);
	take_name(fcinfo, ARG_ROUTING_KEY, "routing_key",
			  row, Anum_message_routing_key);
	refuse_direct_reply_to(PG_GETARG_TEXT_PP(ARG_ROUTING_KEY));

	if (PG_ARGISNULL(ARG_ORDERING_KEY))
		return;
	take_name(fcinfo, ARG_ORDERING_KEY, "ordering_key",
			  row, Anum_message_ordering_key);

	/* Most likely a value that was meant to be null: all would share a key. */
	if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(ARG_ORDERING_KEY)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ordering_key must not be empty"),
				 errhint("Pass null for a message without an ordering key.")));
}

static void
take_deliver_at(FunctionCallInfo fcinfo, Row *row)
{
	TimestampTz deliver_at;

	if (PG_ARGISNULL(ARG_DELIVER_AT))
		return;
	deliver_at = PG_GETARG_TIMESTAMPTZ(ARG_DELIVER_AT);
	if (TIMESTAMP_NOT_FINITE(deliver_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("deliver_at must be finite")));
	set_column(row, Anum_message_deliver_at, TimestampTzGetDatum(deliver_at));
}

/*
 * Size of the payload, without fetching it if it is toasted.
 */
static void
take_payload(Datum payload, Row *row)
{
	Size		size = toast_raw_datum_size(payload) - VARHDRSZ;
	Size		limit = (Size) outbox_max_message_size * 1024;

	if (size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("payload of %zu bytes exceeds outbox.max_message_size (%zu bytes)",
						size, limit),
				 errhint("RabbitMQ has a limit of its own, max_message_size.")));
	set_column(row, Anum_message_payload, payload);
}

/*
 * Headers and properties
 */

static void
setting_error_context(void *arg)
{
	errcontext("setting outbox.headers");
}

/*
 * outbox.headers as jsonb, NULL if it is empty.  Parsed and checked once per
 * distinct value, and kept for the session.
 */
static Jsonb *
headers_of_setting(void)
{
	static char *parsed_text = NULL;
	static Jsonb *parsed = NULL;
	ErrorContextCallback callback;
	OutboxMessage message = {0};
	Datum		headers;
	Jsonb	   *fresh;
	char	   *fresh_text;

	if (outbox_headers == NULL || outbox_headers[0] == '\0')
		return NULL;
	if (parsed_text != NULL && strcmp(parsed_text, outbox_headers) == 0)
		return parsed;

	callback.callback = setting_error_context;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	headers = DirectFunctionCall1(jsonb_in, CStringGetDatum(outbox_headers));
	message.headers = DatumGetJsonbP(headers);
	outbox_properties_check(&message);

	error_context_stack = callback.previous;

	fresh_text = MemoryContextStrdup(TopMemoryContext, outbox_headers);
	fresh = MemoryContextAlloc(TopMemoryContext, VARSIZE(message.headers));
	memcpy(fresh, message.headers, VARSIZE(message.headers));

	if (parsed_text != NULL)
	{
		pfree(parsed_text);
		pfree(parsed);
	}
	parsed_text = fresh_text;
	parsed = fresh;
	return parsed;
}

/* Headers of the call win over those of the setting. */
static Jsonb *
merge_headers(Jsonb *setting, Jsonb *call)
{
	if (setting == NULL || !JB_ROOT_IS_OBJECT(call))
		return call;			/* the latter is refused by the check */
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
											  JsonbPGetDatum(setting),
											  JsonbPGetDatum(call)));
}

/* The content type named in checked properties, or that of the payload. */
static Datum
choose_content_type(Jsonb *properties, const char *by_payload)
{
	JsonbValue	value;

	if (properties != NULL &&
		getKeyJsonValueFromContainer(&properties->root, "content_type",
									 strlen("content_type"), &value) != NULL &&
		value.type == jbvString)
		return PointerGetDatum(cstring_to_text_with_len(value.val.string.val,
														value.val.string.len));
	return CStringGetTextDatum(by_payload);
}

/*
 * A call with neither headers nor properties needs no check: those of the
 * setting were checked when they were parsed.
 */
static void
take_headers_and_properties(FunctionCallInfo fcinfo, const char *content_type,
							Row *row)
{
	OutboxMessage message = {0};

	message.headers = headers_of_setting();
	message.content_type.data = content_type;
	message.content_type.len = strlen(content_type);
	if (!PG_ARGISNULL(ARG_HEADERS))
		message.headers = merge_headers(message.headers,
										PG_GETARG_JSONB_P(ARG_HEADERS));
	if (!PG_ARGISNULL(ARG_PROPERTIES))
		message.properties = PG_GETARG_JSONB_P(ARG_PROPERTIES);

	if (!PG_ARGISNULL(ARG_HEADERS) || !PG_ARGISNULL(ARG_PROPERTIES))
		outbox_properties_check(&message);

	set_column(row, Anum_message_content_type,
			   choose_content_type(message.properties, content_type));
	if (message.headers != NULL)
		set_column(row, Anum_message_headers, JsonbPGetDatum(message.headers));
	if (message.properties != NULL)
		set_column(row, Anum_message_properties,
				   JsonbPGetDatum(message.properties));
}

/*
 * The row
 */

/*
 * Insert the row.  The lock on the segment is kept to the end of the
 * transaction: as long as it is held, segment.c does not empty the segment.
 */
static void
store(Row *row)
{
	Relation	rel = outbox_catalog_open_segment(outbox_shmem_open_segment(),
												  RowExclusiveLock);
	Oid			sequence = outbox_catalog_sequence();
	FullTransactionId xid;
	int64		id;

	/*
	 * First the transaction id, then the id.  The cursor takes the last value
	 * L of the sequence before the next transaction id N, and concludes that
	 * every row of a transaction >= N has an id > L.  With the two lines
	 * swapped a backend could draw an id <= L, stall, and then get an xid >=
	 * N: its message would never be read.  The xid is the top-level one, as
	 * snapshots list only those.
	 */
	xid = GetTopFullTransactionId();
	id = nextval_internal(sequence, false);
	OUTBOX_FAULTPOINT("enqueue-before-insert");

	set_column(row, Anum_message_xid, FullTransactionIdGetDatum(xid));
	set_column(row, Anum_message_id, Int64GetDatum(id));
	outbox_catalog_insert(rel, heap_form_tuple(RelationGetDescr(rel),
											   row->values, row->nulls));
	OUTBOX_FAULTPOINT("enqueue-after-insert");
	table_close(rel, NoLock);
}

/* The message is stored all the same, so this is no error. */
static void
warn_if_not_preloaded(void)
{
	static bool warned = false;

	if (outbox_shared != NULL || warned)
		return;
	warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("messages are stored but not published"),
			 errdetail("The library \"outbox\" was not loaded at server start."),
			 errhint("Add outbox to shared_preload_libraries and restart the server.")));
}

static Datum
enqueue(FunctionCallInfo fcinfo, Datum payload, const char *content_type)
{
	TimestampTz now = GetCurrentTimestamp();
	pg_uuid_t  *message_id = palloc(sizeof(pg_uuid_t));
	Row			row;

	memset(row.nulls, true, sizeof(row.nulls));
	take_names(fcinfo, &row);
	take_deliver_at(fcinfo, &row);
	take_payload(payload, &row);
	take_headers_and_properties(fcinfo, content_type, &row);

	if (PG_ARGISNULL(ARG_MESSAGE_ID))
		outbox_uuid7(now, message_id);
	else
		*message_id = *PG_GETARG_UUID_P(ARG_MESSAGE_ID);
	set_column(&row, Anum_message_message_id, UUIDPGetDatum(message_id));
	set_column(&row, Anum_message_enqueued_at, TimestampTzGetDatum(now));

	store(&row);
	outbox_wake_worker_at_commit();
	warn_if_not_preloaded();

	PG_RETURN_UUID_P(message_id);
}

/*
 * The overloads: each makes a bytea of its payload
 */

/*
 * text and bytea have the same structure, so in a UTF-8 database the value is
 * stored as it came, toasted or not.
 */
static Datum
text_payload(Datum datum)
{
	text	   *value;
	char	   *data;
	char	   *converted;
	int			len;

	if (GetDatabaseEncoding() == PG_UTF8)
		return datum;

	value = DatumGetTextPP(datum);
	data = VARDATA_ANY(value);
	len = VARSIZE_ANY_EXHDR(value);
	converted = pg_server_to_any(data, len, PG_UTF8);
	if (converted == data)
		return PointerGetDatum(value);
	return CStringGetTextDatum(converted);
}

Datum
outbox_enqueue_jsonb(PG_FUNCTION_ARGS)
{
	StringInfoData buf;
	Jsonb	   *value;

	begin_enqueue(fcinfo);
	value = PG_GETARG_JSONB_P(ARG_PAYLOAD);

	/* The text is written behind a header, which makes it a varlena. */
	initStringInfo(&buf);
	buf.len = VARHDRSZ;
	(void) JsonbToCString(&buf, &value->root, VARSIZE(value));
	SET_VARSIZE(buf.data, buf.len);

	return enqueue(fcinfo, text_payload(PointerGetDatum(buf.data)),
				   "application/json");
}

Datum
outbox_enqueue_json(PG_FUNCTION_ARGS)
{
	begin_enqueue(fcinfo);
	return enqueue(fcinfo, text_payload(PG_GETARG_DATUM(ARG_PAYLOAD)),
				   "application/json");
}

Datum
outbox_enqueue_text(PG_FUNCTION_ARGS)
{
	begin_enqueue(fcinfo);
	return enqueue(fcinfo, text_payload(PG_GETARG_DATUM(ARG_PAYLOAD)),
				   "text/plain");
}

Datum
outbox_enqueue_bytea(PG_FUNCTION_ARGS)
{
	begin_enqueue(fcinfo);
	return enqueue(fcinfo, PG_GETARG_DATUM(ARG_PAYLOAD),
				   "application/octet-stream");
}
