/*
 * shim.c
 *		Owns the stand-in for the PostgreSQL functions that the broker code
 *		uses, so that this code runs in a small program under the sanitizers.
 *
 *		Every palloc() is a malloc() of its own, with a header that is poisoned
 *		while nobody here looks at it: AddressSanitizer sees both ends of each
 *		chunk, where the server's allocator would hide them in a block. What a
 *		context holds is counted, since memory that is forgotten in a context
 *		that lives on is no leak to the sanitizer.
 *
 *		An error is what the broker code promises not to raise: it ends the
 *		program.
 */
#include "pgcompat.h"

#include <sanitizer/asan_interface.h>

#include "access/detoast.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "nodes/memnodes.h"
#include "storage/fd.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "settings.h"
#include "shim.h"

#undef snprintf
#undef vsnprintf
#undef fprintf
#undef vfprintf

/* ---- settings ---- */

char	   *outbox_uri;
char	   *outbox_passfile;
char	   *outbox_headers;
bool		outbox_enabled;
int			outbox_durability;
int			outbox_connections;
int			outbox_in_flight_messages;
int			outbox_in_flight_bytes;
int			outbox_in_flight_per_key;
int			outbox_max_message_size;
int			outbox_poll_interval;
int			outbox_connect_timeout;
int			outbox_heartbeat;
int			outbox_confirm_timeout;
int			outbox_max_attempts;
int			outbox_retry_delay_min;
int			outbox_retry_delay_max;
int			outbox_segment_size;
int			outbox_retention;
int			outbox_max_databases;

void
shim_default_settings(void)
{
	outbox_uri = "amqp://guest:guest@127.0.0.1:5672/";
	outbox_passfile = "";
	outbox_headers = "";
	outbox_enabled = true;
	outbox_durability = OUTBOX_DURABILITY_STANDBYS;
	outbox_connections = 1;
	outbox_in_flight_messages = 1000;
	outbox_in_flight_bytes = 4096;
	outbox_in_flight_per_key = 1;
	outbox_max_message_size = 16384;
	outbox_poll_interval = 5000;
	outbox_connect_timeout = 5000;
	outbox_heartbeat = 15;
	outbox_confirm_timeout = 60000;
	outbox_max_attempts = 10;
	outbox_retry_delay_min = 1000;
	outbox_retry_delay_max = 300000;
}

/* ---- memory ---- */

typedef struct Context
{
	MemoryContextData head;		/* its first fields are all that others look at */
	struct Context *parent;
	struct Context *children;
	struct Context *sibling;
	struct Chunk **chunks;
	size_t		count;
	size_t		room;
	size_t		bytes;
} Context;

typedef struct Chunk
{
	Context    *context;
	size_t		index;			/* in its context's chunks */
	size_t		size;
	size_t		unused;			/* keeps what follows aligned */
} Chunk;

static Context top = {.head.type = T_AllocSetContext};
static size_t total_bytes;
static size_t peak_bytes;

MemoryContext CurrentMemoryContext = (MemoryContext) &top;
MemoryContext TopMemoryContext = (MemoryContext) &top;

static Chunk *
open_chunk(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	ASAN_UNPOISON_MEMORY_REGION(chunk, sizeof(Chunk));
	return chunk;
}

static void *
shut_chunk(Chunk *chunk)
{
	ASAN_POISON_MEMORY_REGION(chunk, sizeof(Chunk));
	return chunk + 1;
}

static void *
shim_alloc(Context *context, size_t size)
{
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL)
		abort();
	if (context->count == context->room)
	{
		context->room = context->room * 2 + 16;
		context->chunks = realloc(context->chunks, context->room * sizeof(Chunk *));
		if (context->chunks == NULL)
			abort();
	}
	chunk->context = context;
	chunk->size = size;
	chunk->index = context->count;
	context->chunks[context->count++] = chunk;
	context->bytes += size;
	total_bytes += size;
	peak_bytes = Max(peak_bytes, total_bytes);
	return shut_chunk(chunk);
}

void
pfree(void *pointer)
{
	Chunk	   *chunk = open_chunk(pointer);
	Context    *context = chunk->context;
	Chunk	   *last = context->chunks[--context->count];

	if (last != chunk)
	{
		context->chunks[chunk->index] = last;
		open_chunk(last + 1)->index = chunk->index;
		shut_chunk(last);
	}
	context->bytes -= chunk->size;
	total_bytes -= chunk->size;
	free(chunk);
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return shim_alloc((Context *) context, size);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return memset(shim_alloc((Context *) context, size), 0, size);
}

void *
MemoryContextAllocHuge(MemoryContext context, Size size)
{
	return shim_alloc((Context *) context, size);
}

void *
palloc(Size size)
{
	return MemoryContextAlloc(CurrentMemoryContext, size);
}

void *
palloc0(Size size)
{
	return MemoryContextAllocZero(CurrentMemoryContext, size);
}

void *
palloc_extended(Size size, int flags)
{
	return flags & MCXT_ALLOC_ZERO ? palloc0(size) : palloc(size);
}

void *
repalloc(void *pointer, Size size)
{
	Chunk	   *chunk = open_chunk(pointer);
	size_t		old = chunk->size;
	void	   *result = shim_alloc(chunk->context, size);

	shut_chunk(chunk);
	memcpy(result, pointer, Min(old, size));
	pfree(pointer);
	return result;
}

void *
repalloc_huge(void *pointer, Size size)
{
	return repalloc(pointer, size);
}

char *
MemoryContextStrdup(MemoryContext context, const char *string)
{
	size_t		size = strlen(string) + 1;

	return memcpy(MemoryContextAlloc(context, size), string, size);
}

char *
pstrdup(const char *string)
{
	return MemoryContextStrdup(CurrentMemoryContext, string);
}

char *
psprintf(const char *format,...)
{
	char		text[4096];
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return pstrdup(text);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name,
							  Size minContextSize, Size initBlockSize, Size maxBlockSize)
{
	Context    *context = calloc(1, sizeof(Context));

	if (context == NULL)
		abort();
	context->head.type = T_AllocSetContext;
	context->head.name = name;
	context->parent = (Context *) parent;
	context->sibling = context->parent->children;
	context->parent->children = context;
	return (MemoryContext) context;
}

void
MemoryContextDelete(MemoryContext which)
{
	Context    *context = (Context *) which;
	Context   **link = &context->parent->children;

	while (context->children != NULL)
		MemoryContextDelete((MemoryContext) context->children);
	while (context->count > 0)
		pfree(context->chunks[context->count - 1] + 1);
	while (*link != context)
		link = &(*link)->sibling;
	*link = context->sibling;
	free(context->chunks);
	free(context);
}

size_t
shim_chunks(MemoryContext which)
{
	Context    *context = (Context *) which;
	size_t		count = context->count;

	for (Context *child = context->children; child != NULL; child = child->sibling)
		count += 1 + shim_chunks((MemoryContext) child);
	return count;
}

size_t
shim_bytes(MemoryContext which)
{
	Context    *context = (Context *) which;
	size_t		bytes = context->bytes;

	for (Context *child = context->children; child != NULL; child = child->sibling)
		bytes += shim_bytes((MemoryContext) child);
	return bytes;
}

size_t
shim_peak_bytes(void)
{
	return peak_bytes;
}

void
shim_reset_peak(void)
{
	peak_bytes = total_bytes;
}

/* ---- hash tables: as much as batch.c needs, entries one by one ---- */

typedef struct Element
{
	struct Element *next;
} Element;						/* the entry follows */

#define BUCKETS 64

struct HTAB
{
	MemoryContext context;
	size_t		keysize;
	size_t		entrysize;
	bool		strings;
	long		count;
	Element    *buckets[BUCKETS];
};

HTAB *
hash_create(const char *tabname, long nelem, const HASHCTL *info, int flags)
{
	HTAB	   *table = MemoryContextAllocZero(flags & HASH_CONTEXT ? info->hcxt : TopMemoryContext,
											   sizeof(HTAB));

	table->context = flags & HASH_CONTEXT ? info->hcxt : TopMemoryContext;
	table->keysize = info->keysize;
	table->entrysize = info->entrysize;
	table->strings = (flags & HASH_STRINGS) != 0;
	return table;
}

static bool
same_key(const HTAB *table, const Element *element, const void *key)
{
	const void *mine = element + 1;

	return table->strings ? strncmp(mine, key, table->keysize) == 0 :
		memcmp(mine, key, table->keysize) == 0;
}

static uint32
bucket_of(const HTAB *table, const void *key)
{
	const unsigned char *at = key;
	uint32		hash = 2166136261u;

	for (size_t i = 0; i < table->keysize && !(table->strings && at[i] == '\0'); i++)
		hash = (hash ^ at[i]) * 16777619u;
	return hash % BUCKETS;
}

/* For a batch with several channels, which there is none of here. */
uint32
hash_bytes(const unsigned char *key, int len)
{
	uint32		hash = 2166136261u;

	for (int i = 0; i < len; i++)
		hash = (hash ^ key[i]) * 16777619u;
	return hash;
}

void *
hash_search(HTAB *table, const void *key, HASHACTION action, bool *found)
{
	Element   **link = &table->buckets[bucket_of(table, key)];
	Element    *element;

	while (*link != NULL && !same_key(table, *link, key))
		link = &(*link)->next;
	element = *link;
	if (found != NULL)
		*found = element != NULL;
	if (action == HASH_REMOVE && element != NULL)
	{
		*link = element->next;
		table->count--;
		pfree(element);
		/* The server's keeps it readable; nobody should rely on that. */
		return NULL;
	}
	if (action == HASH_ENTER && element == NULL)
	{
		element = *link = MemoryContextAllocZero(table->context,
												 sizeof(Element) + table->entrysize);
		/* As there, all but the key is whatever was there before. */
		memset(element + 1, 0xA5, table->entrysize);
		if (table->strings)
			strlcpy((char *) (element + 1), key, table->keysize);
		else
			memcpy(element + 1, key, table->keysize);
		table->count++;
	}
	return element == NULL ? NULL : element + 1;
}

long
hash_get_num_entries(HTAB *table)
{
	return table->count;
}

void
hash_seq_init(HASH_SEQ_STATUS *status, HTAB *table)
{
	memset(status, 0, sizeof(*status));
	status->hashp = table;
}

void *
hash_seq_search(HASH_SEQ_STATUS *status)
{
	Element    *element = (Element *) status->curEntry;

	while (element == NULL && status->curBucket < BUCKETS)
		element = status->hashp->buckets[status->curBucket++];
	status->curEntry = element == NULL ? NULL : (HASHELEMENT *) element->next;
	return element == NULL ? NULL : element + 1;
}

void
hash_seq_term(HASH_SEQ_STATUS *status)
{
	(void) status;
}

/* ---- errors ---- */

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int code)
{
	return code;
}

static int
say(const char *format, va_list args)
{
	fputs("raised: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	return 0;
}

int
errmsg(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	say(format, args);
	va_end(args);
	return 0;
}

int
errmsg_internal(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	say(format, args);
	va_end(args);
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	fprintf(stderr, "%s:%d: an error was raised in %s\n", filename, lineno, funcname);
	abort();
}

#if PG_VERSION_NUM >= 160000
void
ExceptionalCondition(const char *condition, const char *filename, int lineno)
#else
void
ExceptionalCondition(const char *condition, const char *type, const char *filename, int lineno)
#endif
{
	fprintf(stderr, "%s:%d: assertion failed: %s\n", filename, lineno, condition);
	abort();
}

/* ---- the rest ---- */

int			MyProcPid = 1;		/* the same in every run: backoff depends on it */

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

static int	external_fds;

bool
AcquireExternalFD(void)
{
	external_fds++;
	return true;
}

void
ReleaseExternalFD(void)
{
	external_fds--;
}

int
shim_external_fds(void)
{
	return external_fds;
}

bool
TimestampDifferenceExceeds(TimestampTz start, TimestampTz stop, int msec)
{
	return stop - start >= (TimestampTz) msec * 1000;
}

/* Payloads here are plain. */
Size
toast_raw_datum_size(Datum value)
{
	return VARSIZE(DatumGetPointer(value));
}

int
pg_snprintf(char *text, size_t size, const char *format,...)
{
	va_list		args;
	int			len;

	va_start(args, format);
	len = vsnprintf(text, size, format, args);
	va_end(args);
	return len;
}

int
pg_vsnprintf(char *text, size_t size, const char *format, va_list args)
{
	return vsnprintf(text, size, format, args);
}

int
pg_strncasecmp(const char *a, const char *b, size_t len)
{
	return strncasecmp(a, b, len);
}

#if !HAVE_DECL_STRLCPY
size_t
strlcpy(char *dst, const char *src, size_t size)
{
	size_t		len = strlen(src);

	if (size > 0)
	{
		memcpy(dst, src, Min(len, size - 1));
		dst[Min(len, size - 1)] = '\0';
	}
	return len;
}
#endif
