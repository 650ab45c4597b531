/*
 * amqp_client.h
 *		What the test programs share: a blocking connection to RabbitMQ.
 *
 *		Blocking is fine here.  The extension itself never uses these calls.
 */
#ifndef AMQP_CLIENT_H
#define AMQP_CLIENT_H

/* 0.12 and later have them in a directory of their own. */
#if defined(__has_include) && __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#endif

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#define DEFAULT_URI "amqp://guest:guest@127.0.0.1:5672/"
#define CHANNEL 1

/* microseconds since the epoch */
static inline int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* What the reply says, for a person. */
static inline const char *
reply_text(amqp_rpc_reply_t reply)
{
	static char text[512];

	switch (reply.reply_type)
	{
		case AMQP_RESPONSE_NORMAL:
			return "ok";
		case AMQP_RESPONSE_NONE:
			return "no reply";
		case AMQP_RESPONSE_LIBRARY_EXCEPTION:
			return amqp_error_string2(reply.library_error);
		case AMQP_RESPONSE_SERVER_EXCEPTION:
			break;
	}
	if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD)
	{
		amqp_channel_close_t *m = reply.reply.decoded;

		snprintf(text, sizeof(text), "channel closed: %d %.*s", m->reply_code,
				 (int) m->reply_text.len, (char *) m->reply_text.bytes);
	}
	else if (reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *m = reply.reply.decoded;

		snprintf(text, sizeof(text), "connection closed: %d %.*s", m->reply_code,
				 (int) m->reply_text.len, (char *) m->reply_text.bytes);
	}
	else
		snprintf(text, sizeof(text), "unexpected method 0x%08X", reply.reply.id);
	return text;
}

/*
 * Connect, log in and open the channel.  Returns NULL and says why in *error
 * if that fails or takes longer than a few seconds.
 */
static inline amqp_connection_state_t
client_connect(const char *uri, const char **error)
{
	struct amqp_connection_info info;
	struct timeval timeout = {5, 0};
	char	   *copy = strdup(uri);
	amqp_connection_state_t conn = amqp_new_connection();
	amqp_socket_t *sock = amqp_tcp_socket_new(conn);
	amqp_rpc_reply_t reply;
	int			rc;

	if (copy == NULL || amqp_parse_url(copy, &info) != AMQP_STATUS_OK)
	{
		fprintf(stderr, "invalid URI \"%s\"\n", uri);
		exit(2);
	}
	if (info.vhost[0] == '\0')
		info.vhost = "/";		/* strictly read, amqp://host/ names the vhost "" */
	amqp_set_handshake_timeout(conn, &timeout);

	rc = amqp_socket_open_noblock(sock, info.host, info.port, &timeout);
	if (rc != AMQP_STATUS_OK)
	{
		*error = amqp_error_string2(rc);
		goto failed;
	}
	reply = amqp_login(conn, info.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0,
					   AMQP_SASL_METHOD_PLAIN, info.user, info.password);
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
	{
		*error = reply_text(reply);
		goto failed;
	}
	amqp_channel_open(conn, CHANNEL);
	reply = amqp_get_rpc_reply(conn);
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
	{
		*error = reply_text(reply);
		goto failed;
	}
	free(copy);
	return conn;

failed:
	amqp_destroy_connection(conn);
	free(copy);
	return NULL;
}

static inline amqp_connection_state_t
client_connect_or_exit(const char *uri)
{
	const char *error = "";
	amqp_connection_state_t conn = client_connect(uri, &error);

	if (conn == NULL)
	{
		fprintf(stderr, "cannot connect to RabbitMQ: %s\n", error);
		exit(1);
	}
	return conn;
}

#endif							/* AMQP_CLIENT_H */
