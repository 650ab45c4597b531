/*
 * headers.h
 *		The headers of a message as an AMQP table.
 */
#ifndef OUTBOX_HEADERS_H
#define OUTBOX_HEADERS_H

#include "amqp_headers.h"
#include "message.h"

/*
 * Convert a JSON object into a table with room for `room` more entries, in the
 * current memory context. Raises SQLSTATE 22023, 22001 or 54001 for what AMQP
 * cannot carry.
 */
extern void outbox_headers_convert(Jsonb *headers, amqp_table_t *table, int room);

/* Rules for headers as such, not for what is inside them; raises 22023. */
extern void outbox_headers_check(const amqp_table_t *headers);

#endif							/* OUTBOX_HEADERS_H */
