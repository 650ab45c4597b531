/*
 * message.c
 *		From a row to an OutboxMessage, and from the encoding of the database
 *		to that of the broker.
 *
 *		On entry: a transaction. Rows are found again by their key, never by
 *		their place in the file: a segment may have been emptied in between.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "message.h"

OutboxBytes
outbox_utf8(OutboxBytes text)
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

bool
outbox_is_direct_reply_to(const void *routing_key, size_t len)
{
	static const char prefix[] = "amq.rabbitmq.reply-to.";

	return len >= strlen(prefix) && memcmp(routing_key, prefix, strlen(prefix)) == 0;
}

struct OutboxFetch
{
	Relation	segment;
	Relation	index;
	SysScanDesc scan;
};

OutboxFetch *
outbox_message_fetch(int segment, int64 id, OutboxMessage *message)
{
	OutboxFetch *fetch = palloc(sizeof(OutboxFetch));
	ScanKeyData key;
	HeapTuple	tuple;

	if (segment == OUTBOX_DEFERRED)
	{
		fetch->segment = table_open(outbox_catalog_table("deferred"), AccessShareLock);
		fetch->index = outbox_catalog_open_index("deferred_pkey");
	}
	else
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "message_%d_pkey", segment);
		fetch->segment = outbox_catalog_open_segment(segment, AccessShareLock);
		fetch->index = outbox_catalog_open_index(name);
	}
	ScanKeyInit(&key, Anum_message_id, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	fetch->scan = systable_beginscan_ordered(fetch->segment, fetch->index,
											 GetActiveSnapshot(), 1, &key);
	tuple = systable_getnext_ordered(fetch->scan, ForwardScanDirection);
	if (!HeapTupleIsValid(tuple))
	{
		outbox_message_fetch_end(fetch);
		return NULL;
	}
	outbox_message_from_tuple(message, tuple, RelationGetDescr(fetch->segment), segment);
	return fetch;
}

void
outbox_message_fetch_end(OutboxFetch *fetch)
{
	systable_endscan_ordered(fetch->scan);
	index_close(fetch->index, AccessShareLock);
	table_close(fetch->segment, AccessShareLock);
	pfree(fetch);
}

static OutboxBytes
text_bytes(Datum value, bool isnull)
{
	OutboxBytes result = {NULL, 0};

	if (!isnull)
	{
		text	   *t = DatumGetTextPP(value);

		result.data = VARDATA_ANY(t);
		result.len = VARSIZE_ANY_EXHDR(t);
	}
	return result;
}

void
outbox_message_from_tuple(OutboxMessage *message, HeapTuple tuple, TupleDesc desc, int segment)
{
	Datum		values[OUTBOX_MAX_COLUMNS];
	bool		isnull[OUTBOX_MAX_COLUMNS];

	if (desc->natts > OUTBOX_MAX_COLUMNS)
		elog(ERROR, "a table of outbox has %d columns", desc->natts);
	heap_deform_tuple(tuple, desc, values, isnull);

#define VALUE(column) (values[Anum_message_##column - 1])
#define IS_NULL(column) (isnull[Anum_message_##column - 1])
	message->id = DatumGetInt64(VALUE(id));
	message->xid = U64FromFullTransactionId(DatumGetFullTransactionId(VALUE(xid)));
	message->segment = segment;
	message->attempts = segment == OUTBOX_DEFERRED ?
		DatumGetInt32(values[Anum_deferred_attempts - 1]) : 0;
	message->enqueued_at = DatumGetTimestampTz(VALUE(enqueued_at));
	message->deliver_at = IS_NULL(deliver_at) ? DT_NOBEGIN : DatumGetTimestampTz(VALUE(deliver_at));
	message->message_id = *DatumGetUUIDP(VALUE(message_id));
	message->exchange = text_bytes(VALUE(exchange), IS_NULL(exchange));
	message->routing_key = text_bytes(VALUE(routing_key), IS_NULL(routing_key));
	message->ordering_key = text_bytes(VALUE(ordering_key), IS_NULL(ordering_key));
	message->content_type = text_bytes(VALUE(content_type), IS_NULL(content_type));
	message->properties = IS_NULL(properties) ? NULL : DatumGetJsonbP(VALUE(properties));
	message->headers = IS_NULL(headers) ? NULL : DatumGetJsonbP(VALUE(headers));
	message->payload = VALUE(payload);
#undef VALUE
#undef IS_NULL
}
