/*
 * catalog.c
 *		Finds our tables by name.
 *
 *		Must agree with sql/outbox.sql, whose names never change meaning: the
 *		library serves the previous SQL version as well as its own.
 */
#include "pgcompat.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "nodes/execnodes.h"
#include "utils/lsyscache.h"

#include "catalog.h"
#include "message.h"

static const char *const segment_names[OUTBOX_SEGMENTS] = {
	"message_0", "message_1", "message_2", "message_3"
};

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

Relation
outbox_catalog_open_segment(int segment, LOCKMODE lockmode)
{
	Oid			oid = outbox_catalog_segment(segment);
	Relation	rel = OidIsValid(oid) ? try_table_open(oid, lockmode) : NULL;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tables of extension \"outbox\" do not exist in this database"),
				 errhint("Run CREATE EXTENSION outbox.")));
	if (RelationGetDescr(rel)->natts != Natts_message)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" does not fit the loaded library of extension \"outbox\"",
						RelationGetRelationName(rel)),
				 errhint("Restart the server after an upgrade of the library, then run ALTER EXTENSION outbox UPDATE.")));
	return rel;
}

Oid
outbox_catalog_sequence(void)
{
	return outbox_catalog_table("message_id_seq");
}

Relation
outbox_catalog_open_index(const char *name)
{
	Oid			oid = outbox_catalog_table(name);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("index outbox.%s does not exist", name),
				 errhint("The extension's own indexes must not be dropped or renamed; reinstall the extension.")));
	return index_open(oid, AccessShareLock);
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
