/*
 * faultpoint.c
 *		Owns what happens at a fault point, in a build for tests.
 *
 *		A test arms one point by a file in the data directory that holds one
 *		line, "name action [skip]".  The first process that passes the point, or
 *		passes it for the (skip + 1)th time, renames the file and then carries
 *		the action out: so it happens once, across a crash restart too.  The
 *		renamed file gets the time of the fault, in microseconds since 1970.
 *
 *			wait	half a second, blocked
 *			kill	SIGKILL to the process itself: the postmaster restarts the cluster
 *			oom		the error that palloc() raises
 *			SQLSTATE	an error of that class, such as 53100 for a full disk
 *
 *		A server looks for the file only if OUTBOX_FAULTPOINTS is set in its
 *		environment; in any other a point costs the test of a variable.
 *
 *		On entry: any process, inside a transaction callback or at its end too,
 *		where no error is to be asked for.
 */
#include "pgcompat.h"

#include "faultpoint.h"

#ifdef OUTBOX_FAULTPOINTS

#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define ARMED_FILE	"outbox.faultpoint"
#define DONE_FILE	"outbox.faultpoint.done"

/* Does the file ask for this point?  If so, what for. */
static bool
is_armed(const char *name, char action[16], int *skip)
{
	char		line[128];
	char		armed_name[64];
	ssize_t		len;
	int			fd = open(ARMED_FILE, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	len = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (len <= 0)
		return false;
	line[len] = '\0';
	*skip = 0;
	return sscanf(line, "%63s %15s %d", armed_name, action, skip) >= 2 &&
		strcmp(armed_name, name) == 0;
}

/* False if another process was faster. */
static bool
disarm(void)
{
	struct timeval now;
	int			fd;

	if (rename(ARMED_FILE, DONE_FILE) != 0)
		return false;
	gettimeofday(&now, NULL);
	fd = open(DONE_FILE, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd >= 0)
	{
		(void) dprintf(fd, "%lld\n", (long long) now.tv_sec * 1000000 + now.tv_usec);
		close(fd);
	}
	return true;
}

static void
carry_out(const char *name, const char *action)
{
	const char *c = action;

	if (strcmp(action, "wait") == 0)
	{
		struct timespec left = {.tv_nsec = 500 * 1000000};

		while (nanosleep(&left, &left) != 0 && errno == EINTR)
			;
		return;
	}
	if (strcmp(action, "kill") == 0)
	{
		kill(getpid(), SIGKILL);
		for (;;)
			pause();
	}
	if (strcmp(action, "oom") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed on request of size 8192 in memory context \"fault point %s\".",
						   name)));
	if (strlen(action) != 5)
		elog(ERROR, "fault point %s: no such action: %s", name, action);
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(c[0], c[1], c[2], c[3], c[4])),
			 errmsg("fault point %s", name)));
}

void
outbox_faultpoint(const char *name)
{
	static int	enabled = -1;	/* not known yet */
	static int	passed = 0;		/* of the skips asked for */
	char		action[16];
	int			skip;

	if (enabled < 0)
		enabled = getenv("OUTBOX_FAULTPOINTS") != NULL;
	if (!enabled || !is_armed(name, action, &skip))
		return;
	if (passed++ < skip || !disarm())
		return;
	passed = 0;
	carry_out(name, action);
}

#endif							/* OUTBOX_FAULTPOINTS */
