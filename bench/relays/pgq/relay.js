'use strict';

// A consumer of PgQ.  pgqd cuts the events into batches (it ticks every --poll-ms), and
// this publishes them.
//
// A batch may be large, for one large transaction is never divided: it is read through
// a cursor, --window events at a time, the next being fetched while the broker confirms
// those before.  finish_batch() commits with the cursor's transaction.  What no queue
// took is left to PgQ's own retry queue.
//
// There is no --listen: PgQ's ticker notifies nobody, so the period of ticks bounds
// the latency.

const { run, options } = require('../common');

const RETRY_S = 10;
const fetch = `FETCH ${options.window} FROM events`;

async function relayBatch(client, publisher) {
	const next = await client.query({ name: 'next', text: "SELECT pgq.next_batch('bench', 'relay') AS batch" });
	const { batch } = next.rows[0];

	if (batch === null) return false;
	await client.query('BEGIN');
	await client.query({
		name: 'open',
		text: "SELECT FROM pgq.get_batch_cursor($1, 'events', 0)",
		values: [batch],
	});
	let { rows } = await client.query(fetch);
	while (rows.length) {
		for (const event of rows) {
			publisher.publish({
				message_id: event.ev_extra1,
				routing_key: event.ev_type,
				payload: Buffer.from(event.ev_data, 'base64'),
			});
		}
		const [following, returned] = await Promise.all([client.query(fetch), publisher.settled()]);

		for (const event of rows.filter((event) => returned.has(event.ev_extra1)))
			await client.query('SELECT pgq.event_retry($1, $2::bigint, $3::int)', [batch, event.ev_id, RETRY_S]);
		rows = following.rows;
	}
	await client.query('CLOSE events');
	await client.query({ name: 'finish', text: 'SELECT pgq.finish_batch($1)', values: [batch] });
	await client.query('COMMIT');
	return true;
}

run(relayBatch);
