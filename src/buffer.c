/*
 * buffer.c
 *		The run of bytes between a batch and the socket.
 *
 *		Encoders append whole frames at `end`, the durability gate moves
 *		`sendable`, the broker connection sends from `start`. On entry start <=
 *		sendable <= end <= size holds, always. Nothing here may raise anything
 *		but "out of memory", and nothing here knows what the bytes mean.
 *
 *		reserve() may move the content to the front, so positions kept by a
 *		caller across it are worthless; distances from `end` stay right.
 */
#include "pgcompat.h"

#include "utils/memutils.h"

#include "buffer.h"

#define BUFFER_MIN		((size_t) 16 * 1024)
#define BUFFER_KEEP		((size_t) 8 * 1024 * 1024)	/* reset() frees more than this */

void
outbox_buffer_init(OutboxBuffer *buffer, MemoryContext context)
{
	memset(buffer, 0, sizeof(*buffer));
	buffer->context = context;
}

void
outbox_buffer_reset(OutboxBuffer *buffer)
{
	buffer->start = buffer->sendable = buffer->end = 0;
	if (buffer->size > BUFFER_KEEP)
	{
		pfree(buffer->data);
		buffer->data = NULL;
		buffer->size = 0;
	}
}

/*
 * Move what is left to the front.  Only when at least as much is free there as
 * must be moved, so that a byte is moved once on average, however slowly the
 * socket drains.
 */
static void
buffer_compact(OutboxBuffer *buffer)
{
	size_t		used = buffer->end - buffer->start;

	if (buffer->start == 0 || used > buffer->start)
		return;
	if (used > 0)
		memmove(buffer->data, buffer->data + buffer->start, used);
	buffer->sendable -= buffer->start;
	buffer->end = used;
	buffer->start = 0;
}

static void
buffer_grow(OutboxBuffer *buffer, size_t needed)
{
	size_t		size = Max(buffer->size, BUFFER_MIN);

	while (size < needed && size <= MaxAllocHugeSize / 2)
		size *= 2;
	if (size < needed)
		size = needed;			/* beyond the limit the allocator raises */
	if (buffer->data == NULL)
		buffer->data = MemoryContextAllocHuge(buffer->context, size);
	else
		buffer->data = repalloc_huge(buffer->data, size);
	buffer->size = size;
}

char *
outbox_buffer_reserve(OutboxBuffer *buffer, size_t len)
{
	if (len > buffer->size - buffer->end)
	{
		buffer_compact(buffer);
		if (len > MaxAllocHugeSize - buffer->end)
			buffer_grow(buffer, MaxAllocHugeSize + 1);	/* raises */
		if (len > buffer->size - buffer->end)
			buffer_grow(buffer, buffer->end + len);
	}
	return buffer->data + buffer->end;
}

void
outbox_buffer_append(OutboxBuffer *buffer, const void *data, size_t len)
{
	memcpy(outbox_buffer_reserve(buffer, len), data, len);
	buffer->end += len;
}
