/*
 * json_scalar.c
 *		JSON keys, strings and numbers as AMQP wants them: UTF-8 whatever the
 *		encoding of the database, and integers apart from other numbers.
 *
 *		Serves properties.c and headers.c.
 */
#include "pgcompat.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "json_scalar.h"

amqp_bytes_t
outbox_json_text(const JsonbValue *string)
{
	OutboxBytes text = {string->val.string.val, string->val.string.len};

	text = outbox_utf8(text);
	return outbox_amqp_run(text.data, text.len);
}

/* A key for an error message: its beginning, if a caller made it very long. */
char *
outbox_json_key_name(const JsonbValue *key)
{
	int			len = pg_mbcliplen(key->val.string.val, key->val.string.len,
								   NAMEDATALEN - 1);

	return pnstrdup(key->val.string.val, len);
}

char *
outbox_json_number(const JsonbValue *number)
{
	Datum		numeric = NumericGetDatum(number->val.numeric);

	return DatumGetCString(DirectFunctionCall1(numeric_out, numeric));
}

/* Is this number written without a fraction, and does it fit into 64 bits? */
bool
outbox_json_is_int64(const char *number, int64 *result)
{
	char	   *end;

	errno = 0;
	*result = strtoll(number, &end, 10);
	return errno == 0 && *end == '\0';
}
