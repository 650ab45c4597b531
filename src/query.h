/*
 * query.h
 *		An SQL statement of the worker, planned once per process.
 */
#ifndef OUTBOX_QUERY_H
#define OUTBOX_QUERY_H

#include "executor/spi.h"

#define OUTBOX_QUERY_ARGS 6

typedef struct OutboxQuery
{
	const char *sql;			/* every name in it is qualified */
	int			nargs;
	Oid			types[OUTBOX_QUERY_ARGS];
	SPIPlanPtr	plan;			/* NULL until first used */
} OutboxQuery;

/*
 * Within a session: run it, with no NULL among the arguments. Returns the
 * number of rows; the result is in SPI_tuptable until outbox_query_done().
 * Raises if it fails.
 */
extern uint64 outbox_query_run(OutboxQuery *query, Datum *args);
extern void outbox_query_done(void);

#endif							/* OUTBOX_QUERY_H */
