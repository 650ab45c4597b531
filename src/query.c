/*
 * query.c
 *		Runs the worker's SQL on the tables beside the path: deferred,
 *		dead_letter, control. The path itself (segments, progress) does without
 *		SQL.
 *
 *		On entry a session is open (session.c): its transaction, its snapshot,
 *		its locks. SPI is connected from outbox_query_run() to
 *		outbox_query_done().
 */
#include "pgcompat.h"

#include "query.h"

uint64
outbox_query_run(OutboxQuery *query, Datum *args)
{
	int			result;

	SPI_connect();
	if (query->plan == NULL)
	{
		query->plan = SPI_prepare(query->sql, query->nargs, query->types);
		if (query->plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(query->plan);
	}
	result = SPI_execute_plan(query->plan, args, NULL, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

void
outbox_query_done(void)
{
	SPI_finish();
}
