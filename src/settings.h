/*
 * settings.h
 *		Every setting: its C variable has its name.  Texts and limits are in
 *		settings.c and, in the same words, in docs/reference.md.
 */
#ifndef OUTBOX_SETTINGS_H
#define OUTBOX_SETTINGS_H

typedef enum OutboxDurability
{
	OUTBOX_DURABILITY_LOCAL,	/* flushed to this server's disk */
	OUTBOX_DURABILITY_STANDBYS	/* and by the synchronous standbys, if any */
} OutboxDurability;

#define OUTBOX_CONNECTIONS_MAX 8

extern char *outbox_uri;				/* amqp://user@host:port/vhost[, ...] */
extern char *outbox_passfile;			/* path, "" = none */
extern char *outbox_headers;			/* jsonb text, "" = none; any user may SET it */
extern bool outbox_enabled;
extern int	outbox_durability;			/* OutboxDurability */
extern int	outbox_connections;			/* 1, at most OUTBOX_CONNECTIONS_MAX */
extern int	outbox_in_flight_messages;	/* 1000 */
extern int	outbox_in_flight_bytes;		/* kB, 4096 */
extern int	outbox_in_flight_per_key;	/* 1 */
extern int	outbox_max_message_size;	/* kB, 16384 */
extern int	outbox_poll_interval;		/* ms, 5000 */
extern int	outbox_connect_timeout;		/* ms, 5000 */
extern int	outbox_heartbeat;			/* s, 15 */
extern int	outbox_confirm_timeout;		/* ms, 60000 */
extern int	outbox_max_attempts;		/* 10 */
extern int	outbox_retry_delay_min;		/* ms, 1000 */
extern int	outbox_retry_delay_max;		/* ms, 300000 */
extern int	outbox_segment_size;		/* kB, 65536 */
extern int	outbox_retention;			/* s, 0 */
extern int	outbox_max_databases;		/* worker slots, 64; PGC_POSTMASTER */

/* postmaster or backend: called once by _PG_init */
extern void outbox_settings_init(void);

#endif							/* OUTBOX_SETTINGS_H */
