/*
 * transport.c
 *		The socket to the broker: opens it, moves bytes, closes it.
 *
 *		Owns the descriptor and its reservation with fd.c. What the bytes mean,
 *		when to give up and when to try again is broker.c's business. Never
 *		here: a call that waits, ereport, palloc.
 */
#include "pgcompat.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "transport.h"

/* After this long without an answer from the peer's kernel the socket is dead. */
#define DEAD_PEER_MS	30000
#define KEEPALIVE_IDLE_S	15
#define KEEPALIVE_INTERVAL_S	5
#define KEEPALIVE_COUNT		3

static const OutboxTransportOps tcp_ops;

static void
set_option(pgsocket fd, int level, int option, int value)
{
	/* All are refinements: a kernel that knows one not works without it. */
	(void) setsockopt(fd, level, option, &value, sizeof(value));
}

static void
tcp_close(OutboxTransport *transport)
{
	if (transport->socket == PGINVALID_SOCKET)
		return;
	close(transport->socket);
	ReleaseExternalFD();
	transport->socket = PGINVALID_SOCKET;
	transport->generation++;
}

/* A socket that has begun to connect to `address`; false with `error` set. */
static bool
tcp_open(OutboxTransport *transport, const OutboxAddress *address)
{
	pgsocket	fd;

	if (!AcquireExternalFD())
	{
		strlcpy(transport->error, "too many open files", sizeof(transport->error));
		return false;
	}
	fd = socket(address->sockaddr.ss_family,
				SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd == PGINVALID_SOCKET)
	{
		snprintf(transport->error, sizeof(transport->error), "%m");
		ReleaseExternalFD();
		return false;
	}
	transport->socket = fd;
	transport->generation++;
	transport->wake_from = 1;
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS);

	if (connect(fd, (const struct sockaddr *) &address->sockaddr, address->len) < 0 &&
		errno != EINPROGRESS && errno != EINTR)
	{
		snprintf(transport->error, sizeof(transport->error), "%m");
		tcp_close(transport);
		return false;
	}
	return true;
}

/* How far has the connect of the open socket come? */
static OutboxTransportStatus
tcp_check(OutboxTransport *transport, TimestampTz now)
{
	struct pollfd ready = {transport->socket, POLLOUT, 0};
	int			error = 0;
	socklen_t	len = sizeof(error);

	if (poll(&ready, 1, 0) > 0)
	{
		if (getsockopt(transport->socket, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
			error = errno;
		if (error == 0)
			return OUTBOX_TRANSPORT_DONE;
		errno = error;
		snprintf(transport->error, sizeof(transport->error), "%m");
		return OUTBOX_TRANSPORT_FAILED;
	}
	if (now < transport->address_deadline)
		return OUTBOX_TRANSPORT_BUSY;
	strlcpy(transport->error, "no answer in time", sizeof(transport->error));
	return OUTBOX_TRANSPORT_FAILED;
}

static OutboxTransportStatus
tcp_connect_continue(OutboxTransport *transport, TimestampTz now)
{
	for (;;)
	{
		int			left;

		if (transport->socket != PGINVALID_SOCKET)
		{
			OutboxTransportStatus status = tcp_check(transport, now);

			if (status != OUTBOX_TRANSPORT_FAILED)
				return status;
			tcp_close(transport);
		}
		left = transport->address_count - transport->address_next;
		if (left <= 0)
			return OUTBOX_TRANSPORT_FAILED;
		if (now >= transport->deadline && transport->address_next > 0)
			return OUTBOX_TRANSPORT_FAILED;

		/* An equal share of what is left, so that a black hole leaves some to others. */
		transport->address_deadline = now + (transport->deadline - now) / left;
		if (!tcp_open(transport, &transport->addresses[transport->address_next++]))
			continue;
	}
}

static ssize_t
tcp_moved(OutboxTransport *transport, ssize_t moved)
{
	if (moved >= 0)
		return moved;
	if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
		return 0;
	snprintf(transport->error, sizeof(transport->error), "%m");
	return -1;
}

static ssize_t
tcp_read(OutboxTransport *transport, void *data, size_t len)
{
	ssize_t		moved = recv(transport->socket, data, len, 0);

	if (moved == 0)
	{
		strlcpy(transport->error, "closed by the server", sizeof(transport->error));
		return -1;
	}
	return tcp_moved(transport, moved);
}

static ssize_t
tcp_write(OutboxTransport *transport, const void *data, size_t len)
{
	return tcp_moved(transport, send(transport->socket, data, len, MSG_NOSIGNAL));
}

static uint32
tcp_wanted(const OutboxTransport *transport, bool reading, bool writing)
{
	if (!transport->connected)
		return WL_SOCKET_WRITEABLE;
	return (reading ? WL_SOCKET_READABLE : 0) | (writing ? WL_SOCKET_WRITEABLE : 0);
}

static bool
tcp_pending(const OutboxTransport *transport)
{
	(void) transport;
	return false;
}

static const OutboxTransportOps tcp_ops = {
	tcp_connect_continue,
	tcp_read,
	tcp_write,
	tcp_close,
	tcp_wanted,
	tcp_pending
};

void
outbox_transport_init(OutboxTransport *transport)
{
	memset(transport, 0, sizeof(*transport));
	transport->socket = PGINVALID_SOCKET;
}

OutboxTransportStatus
outbox_transport_connect_start(OutboxTransport *transport, bool tls,
							   int address_count, TimestampTz now,
							   TimestampTz deadline)
{
	outbox_transport_close(transport);
	transport->error[0] = '\0';
	transport->refused = tls;
	if (tls)
	{
		strlcpy(transport->error, "TLS is not supported by this build yet",
				sizeof(transport->error));
		return OUTBOX_TRANSPORT_FAILED;
	}
	transport->ops = &tcp_ops;
	transport->address_count = address_count;
	transport->address_next = 0;
	transport->deadline = deadline;
	return outbox_transport_connect_continue(transport, now);
}

OutboxTransportStatus
outbox_transport_connect_continue(OutboxTransport *transport, TimestampTz now)
{
	OutboxTransportStatus status = transport->ops->connect_continue(transport, now);

	if (status == OUTBOX_TRANSPORT_DONE)
		transport->connected = true;
	else if (status == OUTBOX_TRANSPORT_FAILED)
		outbox_transport_close(transport);
	return status;
}

ssize_t
outbox_transport_read(OutboxTransport *transport, void *data, size_t len)
{
	return transport->ops->read(transport, data, len);
}

ssize_t
outbox_transport_write(OutboxTransport *transport, const void *data, size_t len)
{
	return transport->ops->write(transport, data, len);
}

uint32
outbox_transport_wanted(const OutboxTransport *transport, bool reading, bool writing)
{
	return transport->ops == NULL ? 0 :
		transport->ops->wanted(transport, reading, writing);
}

bool
outbox_transport_pending(const OutboxTransport *transport)
{
	return transport->ops != NULL && transport->ops->pending(transport);
}

/*
 * With TCP_USER_TIMEOUT, Linux ends a connection also when the peer is alive
 * but has kept its window shut that long. That is how a broker in an alarm
 * behaves, for hours, and no reason to reconnect.
 */
void
outbox_transport_expect_progress(OutboxTransport *transport, bool expect)
{
	if (transport->socket != PGINVALID_SOCKET)
		set_option(transport->socket, IPPROTO_TCP, TCP_USER_TIMEOUT,
				   expect ? DEAD_PEER_MS : 0);
}

void
outbox_transport_wake_from(OutboxTransport *transport, int bytes)
{
	if (transport->socket == PGINVALID_SOCKET || transport->wake_from == bytes)
		return;
	set_option(transport->socket, SOL_SOCKET, SO_RCVLOWAT, bytes);
	transport->wake_from = bytes;
}

void
outbox_transport_discard_input(OutboxTransport *transport)
{
	char		unread[4096];

	/* A peer that sends faster than this reads has no claim to manners. */
	for (int i = 0; i < 64 && transport->connected; i++)
	{
		if (outbox_transport_read(transport, unread, sizeof(unread)) <= 0)
			break;
	}
}

void
outbox_transport_close(OutboxTransport *transport)
{
	if (transport->ops != NULL)
		transport->ops->close(transport);
	transport->ops = NULL;
	transport->connected = false;
	transport->external = false;
}
