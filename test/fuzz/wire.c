/*
 * wire.c
 *		Owns the socket calls that transport.c makes (the linker's --wrap sends
 *		them here): a network in memory, which is the same on every machine and
 *		every time, and which cuts what passes into pieces where it likes.
 *
 *		It fails as a kernel does: refused, reset, end of file, interrupted,
 *		nothing to read now. A call on a socket that is closed ends the
 *		program.
 */
#include "pgcompat.h"

#include <poll.h>
#include <sys/socket.h>

#include "wire.h"

#define FIRST_FD 100000			/* none that the system would give */

Wire		wire = {.fd = -1};

static int	next_fd = FIRST_FD;

int			__wrap_socket(int domain, int type, int protocol);
int			__wrap_connect(int fd, const struct sockaddr *address, socklen_t len);
int			__wrap_poll(struct pollfd *fds, nfds_t count, int timeout);
int			__wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *len);
int			__wrap_setsockopt(int fd, int level, int option, const void *value, socklen_t len);
ssize_t		__wrap_recv(int fd, void *data, size_t len, int flags);
ssize_t		__wrap_send(int fd, const void *data, size_t len, int flags);
int			__wrap_close(int fd);
int			__real_close(int fd);

static void
pipe_put(WirePipe *pipe, const void *data, size_t len)
{
	if (pipe->start == pipe->end)
		pipe->start = pipe->end = 0;
	if (pipe->size - pipe->end < len)
	{
		pipe->size = (pipe->end + len) * 2;
		pipe->data = realloc(pipe->data, pipe->size);
		if (pipe->data == NULL)
			abort();
	}
	memcpy(pipe->data + pipe->end, data, len);
	pipe->end += len;
	wire.moved += len;
}

static size_t
pipe_get(WirePipe *pipe, void *data, size_t len)
{
	len = Min(len, pipe_used(pipe));
	if (len > 0)
		memcpy(data, pipe->data + pipe->start, len);
	pipe->start += len;
	wire.moved += len;
	return len;
}

static void
forget(void)
{
	wire.to_worker.start = wire.to_worker.end = 0;
	wire.to_peer.start = wire.to_peer.end = 0;
	wire.eof = wire.hanging = false;
	wire.reset = wire.connect_error = 0;
}

void
wire_init(Random *random)
{
	forget();
	wire.random = random;
	wire.next_answer = WIRE_ACCEPT;
	wire.capacity = SIZE_MAX;
	wire.piece = 0;
	wire.unsteady = false;
	wire.connections = 0;
	wire.moved = 0;
}

void
wire_free(void)
{
	free(wire.to_worker.data);
	free(wire.to_peer.data);
	memset(&wire.to_worker, 0, sizeof(WirePipe));
	memset(&wire.to_peer, 0, sizeof(WirePipe));
}

/* ---- the peer's side ---- */

void
wire_say(const void *data, size_t len)
{
	if (wire.fd >= 0 && !wire.eof && wire.reset == 0 && len > 0)
		pipe_put(&wire.to_worker, data, len);
}

size_t
wire_hear(void *data, size_t len)
{
	return pipe_get(&wire.to_peer, data, len);
}

void
wire_close(void)
{
	wire.eof = true;
}

/* What has arrived may be read or not: kernels differ. */
void
wire_reset(void)
{
	wire.reset = one_in(wire.random, 2) ? ECONNRESET : ETIMEDOUT;
	if (one_in(wire.random, 2))
		wire.to_worker.start = wire.to_worker.end;
}

/* ---- the worker's side ---- */

static void
check_fd(int fd)
{
	if (fd < 0 || fd != wire.fd)
	{
		fputs("a socket was used that is not open\n", stderr);
		abort();
	}
}

int
__wrap_socket(int domain, int type, int protocol)
{
	if (wire.fd >= 0)
	{
		fputs("a second socket was opened\n", stderr);
		abort();
	}
	forget();
	wire.fd = next_fd++;
	return wire.fd;
}

int
__wrap_connect(int fd, const struct sockaddr *address, socklen_t len)
{
	check_fd(fd);
	wire.connections++;
	switch (wire.next_answer)
	{
		case WIRE_ACCEPT:
			if (one_in(wire.random, 2))
				return 0;
			break;
		case WIRE_REFUSE:
			if (one_in(wire.random, 2))
			{
				errno = one_in(wire.random, 2) ? ECONNREFUSED : ENETUNREACH;
				return -1;
			}
			wire.connect_error = ECONNREFUSED;
			break;
		case WIRE_HANG:
			wire.hanging = true;
			break;
	}
	errno = EINPROGRESS;
	return -1;
}

int
__wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	check_fd(fds->fd);
	if (count != 1 || timeout != 0)
		abort();				/* it would wait */
	if (wire.hanging)
		return 0;
	fds->revents = POLLOUT;
	return 1;
}

int
__wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
	check_fd(fd);
	if (level != SOL_SOCKET || option != SO_ERROR)
		abort();
	memcpy(value, &wire.connect_error, sizeof(int));
	return 0;
}

int
__wrap_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
	check_fd(fd);
	return 0;
}

/* How much of `len` may move in this call; 0, with errno, if nothing. */
static size_t
piece(size_t len)
{
	if (wire.unsteady && one_in(wire.random, 4))
	{
		errno = one_in(wire.random, 2) ? EINTR : EAGAIN;
		return 0;
	}
	return wire.piece == 0 ? len : random_from(wire.random, 1, Min(len, wire.piece));
}

ssize_t
__wrap_recv(int fd, void *data, size_t len, int flags)
{
	check_fd(fd);
	if (pipe_used(&wire.to_worker) > 0)
	{
		len = piece(len);
		return len == 0 ? -1 : (ssize_t) pipe_get(&wire.to_worker, data, len);
	}
	if (wire.reset != 0)
	{
		errno = wire.reset;
		return -1;
	}
	if (wire.eof)
		return 0;
	errno = EAGAIN;
	return -1;
}

ssize_t
__wrap_send(int fd, const void *data, size_t len, int flags)
{
	size_t		used = pipe_used(&wire.to_peer);

	check_fd(fd);
	if (wire.reset != 0)
	{
		errno = wire.reset;
		return -1;
	}
	if (wire.eof)
	{
		/* The first write is answered by a reset, the next one fails. */
		wire.reset = EPIPE;
		return (ssize_t) len;
	}
	errno = EAGAIN;
	len = Min(len, wire.capacity > used ? wire.capacity - used : 0);
	if (len == 0 || (len = piece(len)) == 0)
		return -1;
	pipe_put(&wire.to_peer, data, len);
	return (ssize_t) len;
}

int
__wrap_close(int fd)
{
	if (fd < FIRST_FD)
		return __real_close(fd);
	check_fd(fd);
	wire.fd = -1;
	return 0;
}
