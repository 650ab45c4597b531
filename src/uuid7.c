/*
 * uuid7.c
 *		Makes the message_id of a message whose sender gave none.
 *
 *		Owns: the last time stamp used in this backend, and a small stock of
 *		random bytes.
 *		Step: 1, called by enqueue.c.
 *		On entry: a user backend, with the current time at hand.
 *		Never: use the sequence's value.  Sequence values repeat after a
 *		failover or a restore to a point in time, and a consumer that drops
 *		duplicates by message_id would drop new messages.
 *
 *		Layout: 48 bits of milliseconds since 1970, version, 12 bits of
 *		fraction of the millisecond, variant, 62 random bits.  The 60 bits of
 *		time are treated as one number, so that adding one to it keeps UUIDs of
 *		a backend ascending when the clock stands still or goes back.
 */
#include "pgcompat.h"

#include "utils/timestamp.h"

#include "uuid7.h"

#define UNIX_EPOCH_USECS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* One system call, or one walk through OpenSSL, for this many UUIDs. */
#define RANDOM_STOCK	64

/*
 * Eight random bytes.  The stock is filled in the backend that uses it, never
 * in the postmaster, so no two processes share one.
 */
static void
take_random(uint8 *bytes)
{
	static uint8 stock[RANDOM_STOCK][8];
	static int	left = 0;

	if (left == 0)
	{
		if (!pg_strong_random(stock, sizeof(stock)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = RANDOM_STOCK;
	}
	memcpy(bytes, stock[--left], 8);
}

/* Milliseconds since 1970 in 48 bits, then the fraction in 12 bits. */
static uint64
next_time(TimestampTz now)
{
	static uint64 last = 0;
	uint64		usecs = (uint64) (now + UNIX_EPOCH_USECS);
	uint64		time = ((usecs / 1000) << 12) | ((usecs % 1000) * 4096 / 1000);

	last = Max(time, last + 1);
	return last;
}

void
outbox_uuid7(TimestampTz now, pg_uuid_t *uuid)
{
	uint64		time = next_time(now);
	uint8	   *data = uuid->data;

	for (int i = 0; i < 6; i++)
		data[i] = (uint8) (time >> (52 - 8 * i));
	data[6] = 0x70 | ((time >> 8) & 0x0f);
	data[7] = (uint8) time;
	take_random(data + 8);
	data[8] = 0x80 | (data[8] & 0x3f);
}
