/*
 * faultpoint.h
 *		Places at which a test lets a process die, fail or wait.  In a build that is
 *		not made with FAULTPOINTS=1 nothing is left of them.
 */
#ifndef OUTBOX_FAULTPOINT_H
#define OUTBOX_FAULTPOINT_H

/*
 * A statement of its own, on a line of its own, with a name that no other has:
 * test/t/052_fault_points.pl takes the list of points from these lines, and
 * test/lint/faultpoints.sh sees to their form.
 */
#ifdef OUTBOX_FAULTPOINTS
extern void outbox_faultpoint(const char *name);
#define OUTBOX_FAULTPOINT(name) outbox_faultpoint(name)
#else
#define OUTBOX_FAULTPOINT(name) ((void) 0)
#endif

#endif							/* OUTBOX_FAULTPOINT_H */
