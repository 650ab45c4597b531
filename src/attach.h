/*
 * attach.h
 *		The worker's place among the processes.
 */
#ifndef OUTBOX_ATTACH_H
#define OUTBOX_ATTACH_H

#include "shmem.h"

/* Before connecting: take the slot of a database; ends the process if there is no place for it. */
extern OutboxSlot *outbox_attach(Oid dboid);

/* End the process unless this database has the extension; in no transaction. */
extern void outbox_require_extension(void);

/* End the process unless it can be the only publisher of this database. */
extern void outbox_require_publisher_lock(void);

#endif							/* OUTBOX_ATTACH_H */
