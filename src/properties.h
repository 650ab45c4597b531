/*
 * properties.h
 *		The AMQP properties and headers of a message: jsonb to librabbitmq's
 *		structure, and the rules they must keep.
 */
#ifndef OUTBOX_PROPERTIES_H
#define OUTBOX_PROPERTIES_H

#include "message.h"

struct amqp_basic_properties_t_;

/*
 * enqueue(): refuse with a clear error (SQLSTATE 22023, 22001 or 54000)
 * whatever the protocol or the broker would refuse later: unknown keys, wrong
 * types, values out of range, names over 255 bytes, headers beyond one frame.
 * content_type, properties and headers of the message are looked at.
 */
extern void outbox_properties_check(const OutboxMessage *message);

/*
 * publish: build the properties of a message in the current memory context.
 * Adds message_id, the header x-outbox-id and, from the second attempt on,
 * x-outbox-attempt.  Never raises for a message that outbox_properties_check
 * accepted.  *mandatory is set from properties, default true.
 */
extern struct amqp_basic_properties_t_ *outbox_properties_build(const OutboxMessage *message,
																bool *mandatory);

#endif							/* OUTBOX_PROPERTIES_H */
