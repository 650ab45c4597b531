/*
 * uri.h
 *		outbox.uri taken apart, and the password file that goes with it.
 *
 *		Errors are phrases for a person that never contain a password, nor the
 *		value as a whole. They are constants or, where they name a user, host
 *		or file, palloc'ed in the current context.
 */
#ifndef OUTBOX_URI_H
#define OUTBOX_URI_H

#define OUTBOX_URI_NAME_MAX		255		/* bytes of a user, host or vhost */
#define OUTBOX_URI_PASSWORD_MAX	1024	/* bytes */

typedef struct OutboxUri
{
	bool		tls;			/* amqps:// */
	char	   *user;
	char	   *password;		/* NULL: none in the URI */
	char	   *host;			/* IPv6 addresses without their brackets */
	int			port;
	char	   *vhost;
} OutboxUri;

/*
 * Parse one or several URIs separated by commas or whitespace. Returns how
 * many (0 for an empty value) or -1 with *error set. For the check hook of the
 * setting, and for the broker.
 */
extern int	outbox_uri_parse(const char *value, OutboxUri **uris, const char **error);

/*
 * Find the password for `uri` in a file of lines
 * host:port:vhost:user:password, where * matches anything. `path` may be NULL
 * or empty: no file. Where no line matches, user guest gets the password
 * guest; for anybody else, and for a file that cannot be used, returns false
 * with *error set.
 */
extern bool outbox_uri_passfile_lookup(const char *path, const OutboxUri *uri,
									   char **password, const char **error);

/* Wipe the passwords and free everything that outbox_uri_parse allocated. */
extern void outbox_uri_free(OutboxUri *uris, int count);

#endif							/* OUTBOX_URI_H */
