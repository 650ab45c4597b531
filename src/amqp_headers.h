/*
 * amqp_headers.h
 *		librabbitmq's declarations, wherever the installed version keeps them:
 *		<amqp.h> up to 0.11, <rabbitmq-c/amqp.h> from 0.12 (which still has the
 *		old names, but warns about them).  For amqp_encode.c and properties.c.
 */
#ifndef OUTBOX_AMQP_HEADERS_H
#define OUTBOX_AMQP_HEADERS_H

/* They are not ours to keep clean under -Wextra. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#if defined(__has_include) && __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif
#pragma GCC diagnostic pop

#endif							/* OUTBOX_AMQP_HEADERS_H */
