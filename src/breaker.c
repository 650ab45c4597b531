/*
 * breaker.c
 *		Owns the circuit breakers: one for each destination that does not work,
 *		be it an exchange that is missing or forbidden, or an exchange and
 *		routing key whose messages are nacked, or not answered at all.
 *
 *			 (none) --- 404, 403, nack, no confirm ---> OPEN
 *			 OPEN ----- a probe is confirmed ---------> DRAINING
 *			 DRAINING - 404, 403, nack, no confirm ---> OPEN
 *			 DRAINING - its queue is empty -----------> (none)
 *
 *		While there is a breaker, what is read for its destination goes to its
 *		queue in deferred; so the messages of that destination stay in order,
 *		and none of them is in the way of others. While it is OPEN, one message
 *		at a time is sent on a connection of its own (probe.c). While it is
 *		DRAINING, publish.c takes up the queue in order.
 *
 *		A wrong suspicion harms nobody: the first probe is confirmed, and the
 *		queue drains. So all destinations that might be to blame get a breaker.
 *
 *		What is in memory here is a note of what deferred holds: a queue without
 *		a breaker, be it after a restart, gets one by outbox_breakers_load().
 *
 *		Nothing here sends or waits.
 */
#include "pgcompat.h"

#include "utils/hsearch.h"

#include "breaker.h"
#include "deferred.h"

/* With more destinations than this not working, it is not the destinations. */
#define MAX_BREAKERS 1000

/*
 * A draining queue begins with so many messages, and doubles that each time they
 * are recorded: one that is full again at once shall not refuse thousands.
 */
#define FIRST_ALLOWANCE 16

/* No queue of deferred is left without one, whoever made it. */
#define MAX_LOADED (4 * MAX_BREAKERS)

OutboxBreakers *
outbox_breakers_create(MemoryContext context)
{
	OutboxBreakers *breakers = MemoryContextAllocZero(context, sizeof(OutboxBreakers));
	HASHCTL		info = {
		.keysize = sizeof(OutboxDestination),
		.entrysize = sizeof(OutboxBreaker),
		.hcxt = context
	};

	dlist_init(&breakers->draining);
	breakers->table = hash_create("outbox breakers", 16, &info,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return breakers;
}

static void
copy_name(char *to, OutboxBytes from)
{
	memcpy(to, from.data, Min(from.len, OUTBOX_NAME_SIZE - 1));
}

OutboxDestination
outbox_destination_of(const OutboxMessage *message, OutboxScope scope)
{
	OutboxDestination destination;

	memset(&destination, 0, sizeof(destination));	/* it is compared as bytes */
	destination.scope = scope;
	copy_name(destination.exchange, message->exchange);
	if (scope == OUTBOX_SCOPE_ROUTE)
		copy_name(destination.routing_key, message->routing_key);
	return destination;
}

static OutboxBreaker *
find(OutboxBreakers *breakers, const OutboxDestination *destination)
{
	return hash_search(breakers->table, destination, HASH_FIND, NULL);
}

OutboxBreaker *
outbox_breaker_find(OutboxBreakers *breakers, const OutboxMessage *message, bool deferred)
{
	if (breakers->count == 0)
		return NULL;
	for (int scope = OUTBOX_SCOPE_EXCHANGE; scope <= OUTBOX_SCOPE_ROUTE; scope++)
	{
		OutboxDestination destination = outbox_destination_of(message, scope);
		OutboxBreaker *breaker = find(breakers, &destination);

		if (breaker && !(deferred && breaker->draining))
			return breaker;
	}
	return NULL;
}

static OutboxBreaker *
enter(OutboxBreakers *breakers, const OutboxDestination *destination, TimestampTz next_probe,
	  int limit)
{
	OutboxBreaker *breaker;

	if (breakers->count >= limit)
		return NULL;
	breaker = hash_search(breakers->table, destination, HASH_ENTER, NULL);
	breaker->draining = breaker->reported = false;
	breaker->failures = 0;
	breaker->last_set_aside = 0;
	breakers->count++;
	breakers->open++;
	outbox_breaker_set_next_probe(breakers, breaker, next_probe);
	return breaker;
}

static void
stop_draining(OutboxBreaker *breaker)
{
	breaker->draining = false;
	dlist_delete(&breaker->node);
}

OutboxBreaker *
outbox_breaker_open(OutboxBreakers *breakers, const OutboxDestination *destination,
					bool refused, TimestampTz now)
{
	OutboxBreaker *breaker = find(breakers, destination);

	if (breaker && !breaker->draining)
		return breaker;
	if (breaker)
	{
		stop_draining(breaker);
		breakers->open++;
		outbox_breaker_set_next_probe(breakers, breaker, now);
	}
	else
	{
		/*
		 * Of those that are suspected together, the one whose message was sent
		 * first is the likeliest to have stopped the others: it is probed
		 * last.
		 */
		breaker = enter(breakers, destination, now - breakers->count, MAX_BREAKERS);
		if (breaker == NULL)
			return NULL;
	}
	/* If the broker has just said no, there is no need to ask again at once. */
	if (refused)
		outbox_breaker_failed(breakers, breaker, now);
	return breaker;
}

static void
enter_found(void *arg, const OutboxDestination *destination)
{
	OutboxBreakers *breakers = arg;

	if (find(breakers, destination) == NULL)
		(void) enter(breakers, destination, 0, MAX_LOADED);
}

void
outbox_breakers_load(OutboxBreakers *breakers)
{
	outbox_pick_destinations(MAX_LOADED, enter_found, breakers);
}

void
outbox_breaker_set_next_probe(OutboxBreakers *breakers, OutboxBreaker *breaker,
							  TimestampTz next_probe)
{
	breaker->next_probe = next_probe;
	breakers->next_known = false;
}

void
outbox_breaker_failed(OutboxBreakers *breakers, OutboxBreaker *breaker, TimestampTz now)
{
	breaker->failures++;
	outbox_breaker_set_next_probe(breakers, breaker,
								  outbox_deferred_retry_at(now, breaker->failures));
}

void
outbox_breaker_drain(OutboxBreakers *breakers, OutboxBreaker *breaker)
{
	Assert(!breaker->draining);
	breaker->draining = true;
	breaker->failures = 0;
	breaker->place = 0;
	breaker->last_look = false;
	breaker->allowance = FIRST_ALLOWANCE;
	breaker->taken = 0;
	breaker->last_taken = 0;
	breaker->hold_ms = 0;
	breaker->next_hold = 0;
	dlist_push_tail(&breakers->draining, &breaker->node);
	breakers->open--;
	breakers->drain_due = true;
	breakers->next_known = false;
}

void
outbox_breaker_remove(OutboxBreakers *breakers, OutboxBreaker *breaker)
{
	if (breaker->draining)
		stop_draining(breaker);
	else
		breakers->open--;
	breakers->count--;
	breakers->next_known = false;
	(void) hash_search(breakers->table, &breaker->destination, HASH_REMOVE, NULL);
}

OutboxBreaker *
outbox_breakers_next(OutboxBreakers *breakers)
{
	HASH_SEQ_STATUS all;
	OutboxBreaker *breaker;

	if (breakers->open == 0)
		return NULL;
	if (breakers->next_known)
		return breakers->next;
	breakers->next = NULL;
	breakers->next_known = true;
	hash_seq_init(&all, breakers->table);
	while ((breaker = hash_seq_search(&all)) != NULL)
	{
		if (!breaker->draining &&
			(breakers->next == NULL || breaker->next_probe < breakers->next->next_probe))
			breakers->next = breaker;
	}
	return breakers->next;
}

void
outbox_breakers_forget_times(OutboxBreakers *breakers)
{
	HASH_SEQ_STATUS all;
	OutboxBreaker *breaker;

	hash_seq_init(&all, breakers->table);
	while ((breaker = hash_seq_search(&all)) != NULL)
	{
		if (breaker->next_probe != DT_NOEND)
			breaker->next_probe = 0;
		breaker->next_hold = 0;
	}
	breakers->hold_until = 0;
	breakers->next_known = false;
}
