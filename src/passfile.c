/*
 * passfile.c
 *		outbox.passfile: the password that outbox.uri leaves out.
 *
 *		Read afresh at each login, so that a changed password needs no reload.
 *		The file is small and local, so reading it is the one thing here that
 *		may touch a disk. Never here: ereport, a password in an error phrase,
 *		or a copy of one left behind in memory.
 */
#include "pgcompat.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "uri.h"

#define PASSFILE_MAX	(1024 * 1024)

/*
 * Read one field of a passfile line up to an unescaped colon and compare it
 * with `want`. Returns where the next field begins, NULL if this one does not
 * match.
 */
static const char *
match_field(const char *at, const char *want)
{
	if (at[0] == '*' && at[1] == ':')
		return at + 2;
	while (*at != '\0' && *at != ':')
	{
		if (*at == '\\' && at[1] != '\0')
			at++;
		if (*want == '\0' || *at != *want)
			return NULL;
		at++;
		want++;
	}
	return *at == ':' && *want == '\0' ? at + 1 : NULL;
}

/* The password of one line if the line is for this URI, else NULL. */
static char *
match_line(const char *line, const OutboxUri *uri)
{
	char		port[12];
	char	   *password;
	char	   *out;

	if (line[0] == '#')
		return NULL;
	snprintf(port, sizeof(port), "%d", uri->port);
	if ((line = match_field(line, uri->host)) == NULL ||
		(line = match_field(line, port)) == NULL ||
		(line = match_field(line, uri->vhost)) == NULL ||
		(line = match_field(line, uri->user)) == NULL)
		return NULL;

	password = out = palloc(strlen(line) + 1);
	for (; *line != '\0'; line++)
	{
		if (*line == '\\' && line[1] != '\0')
			line++;
		*out++ = *line;
	}
	*out = '\0';
	return password;
}

/*
 * Open the file if it is fit to hold passwords; returns its descriptor and
 * size. O_NONBLOCK, lest a FIFO hold the worker up before we see that it is
 * one.
 */
static int
passfile_open(const char *path, size_t *size, const char **error)
{
	int			fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		*error = psprintf("could not open password file \"%s\": %m", path);
	else if (!S_ISREG(st.st_mode))
		*error = psprintf("password file \"%s\" is not a plain file", path);
	else if (st.st_mode & (S_IRWXG | S_IRWXO))
		*error = psprintf("password file \"%s\" has group or world access; "
						  "permissions should be u=rw (0600) or less", path);
	else if (st.st_size > PASSFILE_MAX)
		*error = psprintf("password file \"%s\" is too large", path);
	else
	{
		*size = (size_t) st.st_size;
		return fd;
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

/* The whole file as one string of `size` bytes, NULL with *error set. */
static char *
passfile_read(const char *path, size_t *size, const char **error)
{
	int			fd = passfile_open(path, size, error);
	char	   *content;
	size_t		used = 0;

	if (fd < 0)
		return NULL;
	content = palloc_extended(*size + 1, MCXT_ALLOC_NO_OOM);
	if (content == NULL)
	{
		close(fd);
		*error = "out of memory";
		return NULL;
	}
	while (used < *size)
	{
		ssize_t		n = read(fd, content + used, *size - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			*error = psprintf("could not read password file \"%s\": %m", path);
		if (n <= 0)
			break;
		used += (size_t) n;
	}
	close(fd);
	content[used] = '\0';
	*size = used;
	return content;
}

static char *
passfile_search(char *content, size_t size, const OutboxUri *uri)
{
	char	   *line = content;

	while (line < content + size)
	{
		char	   *end = line + strcspn(line, "\n");
		char	   *next = end + 1;
		char	   *password;

		if (end > line && end[-1] == '\r')
			end--;
		*end = '\0';
		password = match_line(line, uri);
		if (password != NULL)
			return password;
		line = next;
	}
	return NULL;
}

bool
outbox_uri_passfile_lookup(const char *path, const OutboxUri *uri,
						   char **password, const char **error)
{
	bool		have_file = path != NULL && path[0] != '\0';

	*password = NULL;
	*error = NULL;
	if (have_file)
	{
		size_t		size = 0;
		char	   *content = passfile_read(path, &size, error);

		if (content != NULL)
		{
			if (*error == NULL)
				*password = passfile_search(content, size, uri);
			explicit_bzero(content, size);
			pfree(content);
		}
		if (*error != NULL)
			return false;
	}
	if (*password != NULL && strlen(*password) > OUTBOX_URI_PASSWORD_MAX)
	{
		explicit_bzero(*password, strlen(*password));
		pfree(*password);
		*password = NULL;
		*error = psprintf("the password of user \"%s\" in \"%s\" is too long",
						  uri->user, path);
		return false;
	}
	if (*password == NULL && strcmp(uri->user, "guest") == 0)
		*password = pstrdup("guest");
	if (*password == NULL && have_file)
		*error = psprintf("no password for user \"%s\" on host \"%s\" in password file \"%s\"",
						  uri->user, uri->host, path);
	else if (*password == NULL)
		*error = psprintf("no password for user \"%s\" on host \"%s\": there is none in outbox.uri, "
						  "and outbox.passfile is not set", uri->user, uri->host);
	return *password != NULL;
}
