/*
 * resolve.c
 *		The look-ups of broker host names, first step of each connection
 *		attempt.
 *
 *		getaddrinfo() waits for nameservers: 20 s if they are silent, whatever
 *		signals arrive, and a worker that waits there stops DROP DATABASE and
 *		shutdown for the whole cluster. So a name that is not a numeric address
 *		goes to getaddrinfo_a(), which has a helper thread of glibc wait
 *		instead, and we poll.
 *
 *		Why a thread is safe in a PostgreSQL process: glibc creates it with all
 *		signals blocked, so that our handlers still run in the main thread
 *		only; it runs nothing but the resolver and the malloc() of libc, which
 *		are thread- safe; it touches no memory of PostgreSQL and only the
 *		look-up it was given; it ends by itself when idle, and with the
 *		process, which never waits for it. Nothing in the worker forks.
 *
 *		A look-up that has begun cannot be cancelled. Therefore it lives in
 *		malloc()ed memory, in a list that outlasts attempts, contexts and
 *		broker objects, until a later attempt takes its result, or it is too old for
 *		that; and there is never more than one per name, so that silent
 *		nameservers cannot pile up threads.
 *
 *		Never here: waiting, palloc, ereport.
 */
#include "pgcompat.h"

#include <netdb.h>
#include <netinet/in.h>

#include "port/atomics.h"
#include "port/pg_bswap.h"
#include "utils/timestamp.h"

#include "resolve.h"

/* Names come from outbox.uri; this many at once means it is being changed wildly. */
#define MAX_LOOKUPS		16

/*
 * A result that nobody has fetched is used within this time since it was asked for: an
 * attempt that it was too late for is made again when all other URIs had theirs.
 */
#define FRESH_MS		300000

typedef struct Lookup
{
	struct Lookup *next;
	TimestampTz started;
	struct gaicb request;		/* read and written by the helper thread */
	struct addrinfo hints;
	char		host[FLEXIBLE_ARRAY_MEMBER];
} Lookup;

static Lookup *lookups = NULL;

static void
fill_hints(struct addrinfo *hints, int flags)
{
	memset(hints, 0, sizeof(*hints));
	hints->ai_family = AF_UNSPEC;
	hints->ai_socktype = SOCK_STREAM;
	hints->ai_flags = flags;
}

static OutboxResolveStatus
copy_addresses(const struct addrinfo *info, int port, OutboxAddress *addresses,
			   int *count, const char **error)
{
	int			n = 0;

	for (; info != NULL && n < OUTBOX_MAX_ADDRESSES; info = info->ai_next)
	{
		OutboxAddress *address = &addresses[n];

		if ((info->ai_family != AF_INET && info->ai_family != AF_INET6) ||
			info->ai_addrlen > sizeof(address->sockaddr))
			continue;
		memcpy(&address->sockaddr, info->ai_addr, info->ai_addrlen);
		address->len = info->ai_addrlen;
		if (info->ai_family == AF_INET)
			((struct sockaddr_in *) &address->sockaddr)->sin_port = pg_hton16(port);
		else
			((struct sockaddr_in6 *) &address->sockaddr)->sin6_port = pg_hton16(port);
		n++;
	}
	*count = n;
	if (n > 0)
		return OUTBOX_RESOLVE_DONE;
	*error = "the name has no IPv4 or IPv6 address";
	return OUTBOX_RESOLVE_FAILED;
}

static void
lookup_free(Lookup *lookup)
{
	if (lookup->request.ar_result != NULL)
		freeaddrinfo(lookup->request.ar_result);
	free(lookup);
}

/*
 * Take finished look-ups that are too old to believe out of the list; those of other
 * names stay for their next attempt.  Returns the one for `host`.
 */
static Lookup *
lookups_reap(const char *host, TimestampTz now, int *running)
{
	Lookup	  **link = &lookups;
	Lookup	   *found = NULL;

	*running = 0;
	while (*link != NULL)
	{
		Lookup	   *lookup = *link;

		if (gai_error(&lookup->request) == EAI_INPROGRESS)
			(*running)++;
		else if (TimestampDifferenceExceeds(lookup->started, now, FRESH_MS))
		{
			*link = lookup->next;
			lookup_free(lookup);
			continue;
		}
		if (strcmp(lookup->host, host) == 0)
			found = lookup;
		link = &lookup->next;
	}
	return found;
}

static Lookup *
lookup_start(const char *host, TimestampTz now, const char **error)
{
	size_t		len = strlen(host) + 1;
	Lookup	   *lookup = calloc(1, offsetof(Lookup, host) + len);
	struct gaicb *list[1];
	int			rc;

	if (lookup == NULL)
	{
		*error = "out of memory";
		return NULL;
	}
	memcpy(lookup->host, host, len);
	lookup->started = now;
	fill_hints(&lookup->hints, 0);
	lookup->request.ar_name = lookup->host;
	lookup->request.ar_request = &lookup->hints;
	list[0] = &lookup->request;

	/*
	 * EAI_AGAIN: it had no memory for telling us when the look-up ends, which we do not
	 * want to be told; but the helper thread has it, and will write to it.
	 */
	rc = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
	if (rc != 0 && rc != EAI_AGAIN)
	{
		*error = gai_strerror(rc);
		free(lookup);
		return NULL;
	}
	lookup->next = lookups;
	lookups = lookup;
	return lookup;
}

static void
lookup_remove(Lookup *lookup)
{
	Lookup	  **link = &lookups;

	while (*link != lookup)
		link = &(*link)->next;
	*link = lookup->next;
	lookup_free(lookup);
}

OutboxResolveStatus
outbox_resolve(const char *host, int port, TimestampTz now,
			   OutboxAddress *addresses, int *count, const char **error)
{
	OutboxResolveStatus status;
	struct addrinfo hints;
	struct addrinfo *numeric = NULL;
	Lookup	   *lookup;
	int			running;
	int			rc;

	lookup = lookups_reap(host, now, &running);
	if (lookup == NULL)
	{
		fill_hints(&hints, AI_NUMERICHOST);
		if (getaddrinfo(host, NULL, &hints, &numeric) == 0)
		{
			status = copy_addresses(numeric, port, addresses, count, error);
			freeaddrinfo(numeric);
			return status;
		}
		if (running >= MAX_LOOKUPS)
		{
			*error = "too many name look-ups are still running";
			return OUTBOX_RESOLVE_FAILED;
		}
		lookup = lookup_start(host, now, error);
		if (lookup == NULL)
			return OUTBOX_RESOLVE_FAILED;
	}

	rc = gai_error(&lookup->request);
	if (rc == EAI_INPROGRESS)
		return OUTBOX_RESOLVE_RUNNING;
	pg_memory_barrier();		/* what the helper thread wrote before it said so */
	if (rc == 0)
		status = copy_addresses(lookup->request.ar_result, port,
								addresses, count, error);
	else
	{
		*error = gai_strerror(rc);	/* constant texts */
		status = OUTBOX_RESOLVE_FAILED;
	}
	lookup_remove(lookup);
	return status;
}
