/*
 * catalog.h
 *		Our tables as C sees them: names, column numbers, OIDs. Must agree with
 *		sql/outbox.sql.
 */
#ifndef OUTBOX_CATALOG_H
#define OUTBOX_CATALOG_H

#include "access/htup.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* Columns of outbox.message_N. */
#define Anum_message_id				1
#define Anum_message_xid			2
#define Anum_message_enqueued_at	3
#define Anum_message_message_id		4
#define Anum_message_exchange		5
#define Anum_message_routing_key	6
#define Anum_message_ordering_key	7
#define Anum_message_deliver_at		8
#define Anum_message_content_type	9
#define Anum_message_properties		10
#define Anum_message_headers		11
#define Anum_message_payload		12
#define Natts_message				12

/*
 * Room for the columns of any table of ours. There may be dropped ones behind
 * those that are known: a column that somebody has added and dropped again
 * remains in the table for ever.
 */
#define OUTBOX_MAX_COLUMNS			32

/* Columns of outbox.deferred beyond those of a segment. */
#define Anum_deferred_reason		13
#define Anum_deferred_due_at		14
#define Anum_deferred_attempts		15
#define Anum_deferred_place			17

/*
 * OIDs are looked up by name each time (the catalog caches make that cheap),
 * so DROP EXTENSION followed by CREATE EXTENSION needs no invalidation of
 * ours. InvalidOid: it is not there.
 */
extern Oid	outbox_catalog_table(const char *name);
extern Oid	outbox_catalog_segment(int segment);

/* That of the ids; raises if it is missing, or draws other ids than the cursor expects. */
extern Oid	outbox_catalog_sequence(void);

/* Raises unless a table of ours has the columns that C expects. */
extern void outbox_catalog_check(Relation rel);

/* Open one of our tables and check it, or tell the user why that cannot be. */
extern Relation outbox_catalog_open(const char *name, LOCKMODE lockmode);
extern Relation outbox_catalog_open_segment(int segment, LOCKMODE lockmode);

/* Open one of our indexes by its name, with AccessShareLock. */
extern Relation outbox_catalog_open_index(const char *name);

/*
 * Insert a row below the level of SQL: no triggers, no privileges, no
 * defaults. The caller holds RowExclusiveLock. Raises if somebody has given
 * the table an index that this level cannot serve.
 */
extern void outbox_catalog_insert(Relation rel, HeapTuple tuple);

#endif							/* OUTBOX_CATALOG_H */
