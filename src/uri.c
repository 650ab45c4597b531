/*
 * uri.c
 *		outbox.uri taken apart: where the broker is and who we are there.
 *
 *		Used by the check hook of the setting, in any process, and by broker.c
 *		before each attempt. The value is typed by a person and may be
 *		anything. Never here: ereport, and never a password or a piece of the
 *		value in an error phrase, since a password with an unescaped @, / or
 *		comma may be cut at any place. Names that are shown later (user, host,
 *		vhost) therefore may not contain such characters raw either.
 */
#include "pgcompat.h"

#include "uri.h"

#define URI_MAX_COUNT	32
#define DEFAULT_PORT	5672
#define DEFAULT_TLS_PORT	5671

/* A piece of the value, not terminated. */
typedef struct Piece
{
	const char *data;
	size_t		len;
} Piece;

static bool
is_separator(char c)
{
	return c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/*
 * Percent-decode into a new string; NULL if an escape is broken, the result is
 * longer than `max`, or it contains a control character where `shown`.
 */
static char *
decode(Piece piece, size_t max, bool shown, const char **error)
{
	char	   *result = palloc(piece.len + 1);
	size_t		used = 0;

	for (size_t i = 0; i < piece.len; i++)
	{
		unsigned char c = (unsigned char) piece.data[i];

		if (c == '%')
		{
			int			high = i + 2 < piece.len ? hex_digit(piece.data[i + 1]) : -1;
			int			low = high >= 0 ? hex_digit(piece.data[i + 2]) : -1;

			if (low < 0)
			{
				*error = "a % must be followed by two hexadecimal digits (write a % itself as %25)";
				break;
			}
			c = (unsigned char) (high << 4 | low);
			i += 2;
		}
		if (c == '\0' || (shown && (c < 0x20 || c == 0x7F)))
		{
			*error = "control characters are not allowed";
			break;
		}
		result[used++] = (char) c;
	}
	result[used] = '\0';
	if (*error == NULL && used > max)
		*error = "a name or password is too long";
	if (*error != NULL)
	{
		explicit_bzero(result, used);
		pfree(result);
		return NULL;
	}
	return result;
}

static bool
parse_port(Piece piece, int *port, const char **error)
{
	int			value = 0;

	for (size_t i = 0; i < piece.len && value <= 65535; i++)
	{
		if (piece.data[i] < '0' || piece.data[i] > '9')
		{
			value = 0;
			break;
		}
		value = value * 10 + (piece.data[i] - '0');
	}
	if (value < 1 || value > 65535)
	{
		*error = "the port must be a number from 1 to 65535";
		return false;
	}
	*port = value;
	return true;
}

/* host, host:port, [address] or [address]:port */
static bool
parse_host(Piece piece, OutboxUri *uri, const char **error)
{
	Piece		host = piece;
	Piece		port = {NULL, 0};
	const char *end = piece.data + piece.len;
	const char *colon;

	if (piece.len > 0 && piece.data[0] == '[')
	{
		const char *close = memchr(piece.data, ']', piece.len);

		if (close == NULL || (close + 1 < end && close[1] != ':'))
		{
			*error = "the brackets around the IPv6 address are not closed";
			return false;
		}
		host.data = piece.data + 1;
		host.len = (size_t) (close - host.data);
		colon = close + 1 < end ? close + 1 : NULL;
	}
	else
	{
		colon = memchr(piece.data, ':', piece.len);
		if (colon != NULL)
			host.len = (size_t) (colon - piece.data);
	}
	if (colon != NULL)
	{
		port.data = colon + 1;
		port.len = (size_t) (end - port.data);
		if (!parse_port(port, &uri->port, error))
			return false;
	}
	uri->host = decode(host, OUTBOX_URI_NAME_MAX, true, error);
	if (uri->host == NULL)
		return false;
	if (uri->host[0] == '\0')
		*error = "the host name is missing";
	else if (strspn(uri->host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					"0123456789.:-_%") != strlen(uri->host))
		*error = "the host name contains a character that host names do not have";
	return *error == NULL;
}

/* user or user:password; nothing at all means the user guest */
static bool
parse_user(Piece piece, OutboxUri *uri, const char **error)
{
	const char *colon = memchr(piece.data, ':', piece.len);
	Piece		user = piece;

	if (colon != NULL)
	{
		Piece		password;

		user.len = (size_t) (colon - piece.data);
		password.data = colon + 1;
		password.len = piece.len - user.len - 1;
		uri->password = decode(password, OUTBOX_URI_PASSWORD_MAX, false, error);
		if (uri->password == NULL)
			return false;
	}
	uri->user = decode(user, OUTBOX_URI_NAME_MAX, true, error);
	if (uri->user != NULL && uri->user[0] == '\0')
		*error = "the user name is empty";
	return *error == NULL;
}

/* Behind the authority: nothing, a lone slash, or a slash and one escaped name. */
static bool
parse_vhost(Piece piece, OutboxUri *uri, const char **error)
{
	if (piece.len <= 1)
	{
		uri->vhost = pstrdup("/");
		return true;
	}
	piece.data++;
	piece.len--;
	if (memchr(piece.data, '/', piece.len) != NULL)
		*error = "a / in the virtual host must be written as %2F";
	else if (memchr(piece.data, '@', piece.len) != NULL)
		*error = "a / in the password must be written as %2F, and a @ in the virtual host as %40";
	else
		uri->vhost = decode(piece, OUTBOX_URI_NAME_MAX, true, error);
	return *error == NULL;
}

static bool
parse_one(Piece piece, OutboxUri *uri, const char **error)
{
	Piece		authority;
	Piece		user = {"guest", 5};
	const char *slash;
	const char *at;
	size_t		skip;

	memset(uri, 0, sizeof(*uri));
	if (piece.len > 7 && pg_strncasecmp(piece.data, "amqp://", 7) == 0)
		skip = 7;
	else if (piece.len > 8 && pg_strncasecmp(piece.data, "amqps://", 8) == 0)
		skip = 8;
	else
	{
		*error = "it must begin with amqp:// and name a host";
		return false;
	}
	uri->tls = skip == 8;
	uri->port = uri->tls ? DEFAULT_TLS_PORT : DEFAULT_PORT;
	if (memchr(piece.data, '?', piece.len) != NULL)
		*error = "query parameters are not supported (write a ? itself as %3F)";
	else if (memchr(piece.data, '#', piece.len) != NULL)
		*error = "a # must be written as %23";
	if (*error != NULL)
		return false;
	piece.data += skip;
	piece.len -= skip;

	authority = piece;
	slash = memchr(piece.data, '/', piece.len);
	if (slash != NULL)
		authority.len = (size_t) (slash - piece.data);
	piece.data += authority.len;
	piece.len -= authority.len;

	at = memchr(authority.data, '@', authority.len);
	if (at != NULL)
	{
		user.data = authority.data;
		user.len = (size_t) (at - authority.data);
		authority.data = at + 1;
		authority.len -= user.len + 1;
		/* Whoever hides the password must be sure where it ends. */
		if (memchr(authority.data, '@', authority.len) != NULL)
		{
			*error = "a @ in user or password must be written as %40";
			return false;
		}
	}
	return parse_user(user, uri, error) &&
		parse_host(authority, uri, error) &&
		parse_vhost(piece, uri, error);
}

int
outbox_uri_parse(const char *value, OutboxUri **uris, const char **error)
{
	OutboxUri  *list = palloc(sizeof(OutboxUri) * URI_MAX_COUNT);
	int			count = 0;

	*error = NULL;
	*uris = NULL;
	for (;;)
	{
		Piece		piece;

		while (is_separator(*value))
			value++;
		if (*value == '\0')
			break;
		piece.data = value;
		while (*value != '\0' && !is_separator(*value))
			value++;
		piece.len = (size_t) (value - piece.data);

		if (count == URI_MAX_COUNT)
			*error = "there are too many URIs";
		else if (!parse_one(piece, &list[count], error))
			count++;			/* so that its parts are freed as well */
		if (*error != NULL)
		{
			outbox_uri_free(list, count);
			return -1;
		}
		count++;
	}
	*uris = list;
	return count;
}

void
outbox_uri_free(OutboxUri *uris, int count)
{
	if (uris == NULL)
		return;
	for (int i = 0; i < count; i++)
	{
		if (uris[i].password != NULL)
		{
			explicit_bzero(uris[i].password, strlen(uris[i].password));
			pfree(uris[i].password);
		}
		if (uris[i].user != NULL)
			pfree(uris[i].user);
		if (uris[i].host != NULL)
			pfree(uris[i].host);
		if (uris[i].vhost != NULL)
			pfree(uris[i].vhost);
	}
	pfree(uris);
}
