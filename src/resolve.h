/*
 * resolve.h
 *		Host names to addresses without ever waiting.
 */
#ifndef OUTBOX_RESOLVE_H
#define OUTBOX_RESOLVE_H

#include <sys/socket.h>

#include "datatype/timestamp.h"

#define OUTBOX_MAX_ADDRESSES 8

typedef struct OutboxAddress
{
	struct sockaddr_storage sockaddr;
	socklen_t	len;
} OutboxAddress;

typedef enum OutboxResolveStatus
{
	OUTBOX_RESOLVE_RUNNING,		/* ask again in some milliseconds */
	OUTBOX_RESOLVE_DONE,
	OUTBOX_RESOLVE_FAILED		/* see error */
} OutboxResolveStatus;

/*
 * Look `host` up, or see how the look-up of it that is under way is getting on: the
 * call is the same.  Whoever loses patience just stops calling.  When done,
 * *count addresses (at least one) are in `addresses`, which has room for
 * OUTBOX_MAX_ADDRESSES.  *error is a constant phrase.
 */
extern OutboxResolveStatus outbox_resolve(const char *host, int port, TimestampTz now,
										  OutboxAddress *addresses, int *count,
										  const char **error);

#endif							/* OUTBOX_RESOLVE_H */
