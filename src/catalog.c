/*
 * catalog.c
 *		Finds our tables by name.
 *
 *		Must agree with sql/outbox.sql, whose names never change meaning: the
 *		library serves the previous SQL version as well as its own.
 */
#include "pgcompat.h"

#include "catalog/namespace.h"
#include "utils/lsyscache.h"

#include "batch.h"
#include "catalog.h"

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

Oid
outbox_catalog_sequence(void)
{
	return outbox_catalog_table("message_id_seq");
}
