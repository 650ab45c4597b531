/*
 * held.c
 *		Owns the two triggers that keep rows which nobody enqueued here off the
 *		path.
 *
 *		enqueue() inserts below the level of triggers, so these see only what
 *		came another way: written or restored by hand, which goes to
 *		outbox.held, or brought by logical replication, which is dropped, since
 *		the publisher's outbox is the publisher's business.
 */
#include "pgcompat.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "utils/timestamp.h"

#include "catalog.h"

PG_FUNCTION_INFO_V1(outbox_hold_row);
PG_FUNCTION_INFO_V1(outbox_drop_replicated_row);

static TriggerData *
trigger_data(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function can only be called as a trigger")));
	return (TriggerData *) fcinfo->context;
}

/* outbox.hold_row(): BEFORE INSERT on a segment. */
Datum
outbox_hold_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = trigger_data(fcinfo);
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Relation	held = outbox_catalog_open("held", RowExclusiveLock);
	Datum		values[OUTBOX_MAX_COLUMNS];
	bool		isnull[OUTBOX_MAX_COLUMNS];
	Oid			sequence = outbox_catalog_table("held_number_seq");

	outbox_catalog_check(trigger->tg_relation);
	if (desc->natts < Natts_message || desc->natts > OUTBOX_MAX_COLUMNS)
		elog(ERROR, "outbox.hold_row() is a trigger of the segments only");
	memset(isnull, true, sizeof(isnull));
	heap_deform_tuple(trigger->tg_trigtuple, desc, values, isnull);
	/* This insert checks no constraints, and release_held() needs these. */
	for (int i = 0; i < Natts_message; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (isnull[i] && column->attnotnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in column \"%s\" of a message", NameStr(column->attname)),
					 errhint("Use outbox.enqueue().")));
	}
	values[Natts_message] = TimestampTzGetDatum(GetCurrentTimestamp());
	isnull[Natts_message] = false;
	values[Natts_message + 1] = Int64GetDatum(nextval_internal(sequence, false));
	isnull[Natts_message + 1] = false;
	outbox_catalog_insert(held, heap_form_tuple(RelationGetDescr(held), values, isnull));
	table_close(held, NoLock);
	return PointerGetDatum(NULL);
}

/* outbox.drop_replicated_row(): ENABLE REPLICA, BEFORE any change, on all tables. */
Datum
outbox_drop_replicated_row(PG_FUNCTION_ARGS)
{
	(void) trigger_data(fcinfo);
	return PointerGetDatum(NULL);
}
