/*
 * transport.h
 *		A stream of bytes to the broker that never waits.
 *
 *		TCP is the only kind there is yet. TLS fits in as a second set of
 *		OutboxTransportOps over the same socket: its connect_continue goes on
 *		with SSL_connect() where TCP is done, `wanted` follows SSL_want(), and
 *		`pending` tells of bytes that OpenSSL holds and epoll cannot see.
 */
#ifndef OUTBOX_TRANSPORT_H
#define OUTBOX_TRANSPORT_H

#include "resolve.h"

typedef enum OutboxTransportStatus
{
	OUTBOX_TRANSPORT_BUSY,		/* go on when the socket is ready */
	OUTBOX_TRANSPORT_DONE,
	OUTBOX_TRANSPORT_FAILED		/* see error; the socket is closed */
} OutboxTransportStatus;

typedef struct OutboxTransport OutboxTransport;

typedef struct OutboxTransportOps
{
	OutboxTransportStatus (*connect_continue) (OutboxTransport *transport, TimestampTz now);

	/* bytes moved, 0 if that would mean waiting, -1 if the stream has ended: see error */
	ssize_t		(*read) (OutboxTransport *transport, void *data, size_t len);
	ssize_t		(*write) (OutboxTransport *transport, const void *data, size_t len);
	void		(*close) (OutboxTransport *transport);

	/* WL_SOCKET_* to wait for */
	uint32		(*wanted) (const OutboxTransport *transport, bool reading, bool writing);

	/* can read() give bytes although the socket is not readable? */
	bool		(*pending) (const OutboxTransport *transport);
} OutboxTransportOps;

struct OutboxTransport
{
	const OutboxTransportOps *ops;	/* NULL: closed */
	pgsocket	socket;
	uint32		generation;		/* goes up with each socket opened or closed */
	bool		connected;
	int			wake_from;		/* bytes that make the socket readable */
	bool		external;		/* a client certificate was shown: SASL EXTERNAL fits */
	TimestampTz deadline;		/* of the whole connect */
	TimestampTz address_deadline;	/* of the address being tried */
	OutboxAddress addresses[OUTBOX_MAX_ADDRESSES];
	int			address_count;
	int			address_next;
	bool		refused;		/* failed for a reason that time does not cure */
	char		error[160];		/* phrase for a person */
};

extern void outbox_transport_init(OutboxTransport *transport);

/*
 * Begin to connect to the addresses in transport->addresses, one after the
 * other, all before `deadline`. Goes on with outbox_transport_connect_continue().
 */
extern OutboxTransportStatus outbox_transport_connect_start(OutboxTransport *transport, bool tls,
															int address_count, TimestampTz now,
															TimestampTz deadline);
extern OutboxTransportStatus outbox_transport_connect_continue(OutboxTransport *transport,
															   TimestampTz now);
extern ssize_t outbox_transport_read(OutboxTransport *transport, void *data, size_t len);
extern ssize_t outbox_transport_write(OutboxTransport *transport, const void *data, size_t len);
extern uint32 outbox_transport_wanted(const OutboxTransport *transport, bool reading, bool writing);
extern bool outbox_transport_pending(const OutboxTransport *transport);

/*
 * From how many bytes on is the socket readable?  From the first, until this says
 * otherwise; its end always makes it so. A refinement, which TLS, whose bytes are
 * not those of the stream, will have to do without.
 */
extern void outbox_transport_wake_from(OutboxTransport *transport, int bytes);

/* Is silence of the peer's kernel a sign of death (true from the start)? */
extern void outbox_transport_expect_progress(OutboxTransport *transport, bool expect);

/*
 * Before the close: what has arrived is of no interest any more. Unread, it would make
 * the kernel reset the connection, and the peer lose what was sent last.
 */
extern void outbox_transport_discard_input(OutboxTransport *transport);

/* Safe at any time, also if nothing is open. */
extern void outbox_transport_close(OutboxTransport *transport);

#endif							/* OUTBOX_TRANSPORT_H */
