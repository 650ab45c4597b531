'use strict';

// The relay that many would write by hand: pg and amqplib, a batch in a transaction.
//
// As fast as such a program can be without giving up its simplicity: batches of
// --window rows, prepared statements, a batch published without waiting in between,
// then one wait for all confirms, and one DELETE.  A message that no queue took stays
// in the table.

const { run, options } = require('../common');

const take = {
	name: 'take',
	text: `SELECT id, message_id, routing_key, payload FROM node.outbox
		ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED`,
	values: [options.window],
};

async function relayBatch(client, publisher) {
	await client.query('BEGIN');
	const { rows } = await client.query(take);

	for (const row of rows) publisher.publish(row);
	const returned = await publisher.settled();
	const done = returned.size ? rows.filter((row) => !returned.has(row.message_id)) : rows;

	if (done.length) {
		await client.query({
			name: 'done',
			text: 'DELETE FROM node.outbox WHERE id = ANY($1::bigint[])',
			values: [done.map((row) => row.id)],
		});
	}
	await client.query('COMMIT');
	return done.length > 0;
}

run(relayBatch, 'node_outbox');
