/*
 * json_scalar.h
 *		JSON keys, strings and numbers as AMQP wants them.
 */
#ifndef OUTBOX_JSON_SCALAR_H
#define OUTBOX_JSON_SCALAR_H

#include "amqp_headers.h"
#include "message.h"

#define OUTBOX_SHORT_STRING_MAX 255

/* A JSON string or key in UTF-8. */
extern amqp_bytes_t outbox_json_text(const JsonbValue *string);

/* A key for an error message: its beginning, if a caller made it very long. */
extern char *outbox_json_key_name(const JsonbValue *key);

extern char *outbox_json_number(const JsonbValue *number);

/* Is this number written without a fraction, and does it fit into 64 bits? */
extern bool outbox_json_is_int64(const char *number, int64 *result);

static inline amqp_bytes_t
outbox_amqp_run(const char *data, size_t len)
{
	amqp_bytes_t run;

	run.len = len;
	run.bytes = unconstify(char *, data);
	return run;
}

#endif							/* OUTBOX_JSON_SCALAR_H */
