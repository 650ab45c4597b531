/*
 * uuid7.h
 *		UUID version 7 (RFC 9562), which PostgreSQL has only from 18 on.
 */
#ifndef OUTBOX_UUID7_H
#define OUTBOX_UUID7_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Each UUID of a backend is greater than the one before. */
extern void outbox_uuid7(TimestampTz now, pg_uuid_t *uuid);

#endif							/* OUTBOX_UUID7_H */
