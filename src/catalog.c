/*
 * catalog.c
 *		Finds our tables by name, and refuses those that are not as the
 *		extension made them.
 *
 *		C reads and forms their rows by number and type of column, so on a table
 *		that a superuser has altered it would read what is not there, and take
 *		the cluster down with it.
 *
 *		Must agree with sql/outbox.sql, whose names never change meaning: the
 *		library serves the previous SQL version as well as its own.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "nodes/execnodes.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "message.h"

static const char *const segment_names[OUTBOX_SEGMENTS] = {
	"message_0", "message_1", "message_2", "message_3"
};

typedef struct Column
{
	Oid			type;
	bool		not_null;
} Column;

typedef struct Layout
{
	const Column *columns;
	int			count;
	bool		may_have_more;	/* behind these; rows of it are not formed here */
} Layout;

#define MESSAGE_COLUMNS \
	{INT8OID, true}, {XID8OID, true}, {TIMESTAMPTZOID, true}, {UUIDOID, true}, \
	{TEXTOID, true}, {TEXTOID, true}, {TEXTOID, false}, {TIMESTAMPTZOID, false}, \
	{TEXTOID, false}, {JSONBOID, false}, {JSONBOID, false}, {BYTEAOID, true}

static const Column message_columns[] = {MESSAGE_COLUMNS};

static const Column deferred_columns[] = {
	MESSAGE_COLUMNS, {TEXTOID, true}, {TIMESTAMPTZOID, true}, {INT4OID, true},
	{TEXTOID, false}, {INT8OID, true}
};

static const Column held_columns[] = {
	MESSAGE_COLUMNS, {TIMESTAMPTZOID, true}, {INT8OID, true}
};

static const Column progress_columns[] = {
	{INT8OID, true}, {TIMESTAMPTZOID, true},
	{INT8OID, true}, {XID8OID, true}, {PG_SNAPSHOTOID, true},
	{INT8OID, false}, {XID8OID, false}, {PG_SNAPSHOTOID, false}, {INT8OID, false},
	{INT8OID, false}
};

StaticAssertDecl(lengthof(message_columns) == Natts_message &&
				 lengthof(held_columns) == Natts_message + 2 &&
				 lengthof(deferred_columns) == Anum_deferred_place,
				 "the columns here are not those of catalog.h");

/* OID of a relation in our schema, InvalidOid if there is none. */
Oid
outbox_catalog_table(const char *name)
{
	Oid			schema = get_namespace_oid("outbox", true);

	if (!OidIsValid(schema))
		return InvalidOid;
	return get_relname_relid(name, schema);
}

Oid
outbox_catalog_segment(int segment)
{
	Assert(segment >= 0 && segment < OUTBOX_SEGMENTS);
	return outbox_catalog_table(segment_names[segment]);
}

/* What C relies on in a table of ours; false: nothing. */
static bool
layout_of(const char *name, Layout *layout)
{
#define LAYOUT(array, more) ((Layout) {(array), lengthof(array), (more)})
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (strcmp(name, segment_names[i]) == 0)
		{
			*layout = LAYOUT(message_columns, false);
			return true;
		}
	}
	if (strcmp(name, "progress_0") == 0 || strcmp(name, "progress_1") == 0)
		*layout = LAYOUT(progress_columns, false);
	else if (strcmp(name, "held") == 0)
		*layout = LAYOUT(held_columns, false);
	else if (strcmp(name, "deferred") == 0)
		*layout = LAYOUT(deferred_columns, true);
	else
		return false;
	return true;
#undef LAYOUT
}

/*
 * The first column that is not as it must be, 0 if all are. Behind those that
 * must be there may be dropped ones; see OUTBOX_MAX_COLUMNS.
 */
static int
misfit(TupleDesc desc, const Layout *layout)
{
	for (int i = 0; i < layout->count; i++)
	{
		Form_pg_attribute column;

		if (i >= desc->natts)
			return i + 1;
		column = TupleDescAttr(desc, i);
		if (column->attisdropped || column->atttypid != layout->columns[i].type ||
			(layout->columns[i].not_null && !column->attnotnull))
			return i + 1;
	}
	for (int i = layout->count; i < desc->natts; i++)
	{
		if (i >= OUTBOX_MAX_COLUMNS ||
			(!layout->may_have_more && !TupleDescAttr(desc, i)->attisdropped))
			return i + 1;
	}
	return 0;
}

void
outbox_catalog_check(Relation rel)
{
	Layout		layout;
	int			column;

	if (!layout_of(RelationGetRelationName(rel), &layout))
		return;
	column = rel->rd_rel->relkind == RELKIND_RELATION ?
		misfit(RelationGetDescr(rel), &layout) : 1;
	if (column == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" does not fit the loaded library of extension \"outbox\"",
					RelationGetRelationName(rel)),
			 column <= layout.count ?
			 errdetail("Column %d is not of type %s%s.", column,
					   format_type_be(layout.columns[column - 1].type),
					   layout.columns[column - 1].not_null ? " NOT NULL" : "") :
			 errdetail("Column %d is not one of the extension's.", column),
			 errhint("If somebody has altered the table, undo that, or reinstall the extension. "
					 "After an upgrade of the library, restart the server, then run ALTER EXTENSION outbox UPDATE.")));
}

Relation
outbox_catalog_open(const char *name, LOCKMODE lockmode)
{
	Oid			oid = outbox_catalog_table(name);
	Relation	rel = OidIsValid(oid) ? try_table_open(oid, lockmode) : NULL;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tables of extension \"outbox\" do not exist in this database"),
				 errdetail("There is no table outbox.%s.", name),
				 OidIsValid(get_extension_oid("outbox", true)) ?
				 errhint("Somebody has dropped or renamed it: undo that, or reinstall the extension.") :
				 errhint("Run CREATE EXTENSION outbox.")));
	outbox_catalog_check(rel);
	return rel;
}

Relation
outbox_catalog_open_segment(int segment, LOCKMODE lockmode)
{
	Assert(segment >= 0 && segment < OUTBOX_SEGMENTS);
	return outbox_catalog_open(segment_names[segment], lockmode);
}

/*
 * With a cache, or backwards, ids would be drawn that the cursor believes to
 * have passed (cursor.c): their messages would never be read.
 */
Oid
outbox_catalog_sequence(void)
{
	Oid			oid = outbox_catalog_table("message_id_seq");
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(oid));
	bool		fits = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_sequence sequence = (Form_pg_sequence) GETSTRUCT(tuple);

		fits = sequence->seqcache == 1 && sequence->seqincrement > 0 && !sequence->seqcycle;
		ReleaseSysCache(tuple);
	}
	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sequence outbox.message_id_seq is missing or was altered"),
				 errhint("ALTER SEQUENCE outbox.message_id_seq CACHE 1 INCREMENT 1 NO CYCLE, or reinstall the extension.")));
	return oid;
}

Relation
outbox_catalog_open_index(const char *name)
{
	Oid			oid = outbox_catalog_table(name);
	Relation	index = OidIsValid(oid) ? index_open(oid, AccessShareLock) : NULL;

	/* An invalid one, left by CREATE INDEX CONCURRENTLY, does not have all rows. */
	if (index == NULL || !index->rd_index->indisvalid)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("index outbox.%s does not exist or is invalid", name),
				 errhint("The extension's own indexes must not be dropped or renamed; make it anew, or reinstall the extension.")));
	return index;
}

/*
 * Indexes on expressions, partial and exclusion indexes need an executor;
 * without one they would be filled wrongly, or crash the server.
 */
void
outbox_catalog_insert(Relation rel, HeapTuple tuple)
{
	CatalogIndexState indexes = CatalogOpenIndexes(rel);

	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		IndexInfo  *info = indexes->ri_IndexRelationInfo[i];

		if (info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
			info->ii_ExclusionOps != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("index \"%s\" must not be on outbox.%s",
							RelationGetRelationName(indexes->ri_IndexRelationDescs[i]),
							RelationGetRelationName(rel)),
					 errdetail("Tables of outbox can have no index on an expression and no partial index."),
					 errhint("Drop the index.")));
	}
	CatalogTupleInsertWithInfo(rel, tuple, indexes);
	CatalogCloseIndexes(indexes);
}
