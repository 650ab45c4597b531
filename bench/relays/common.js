'use strict';

// What the relays in Node share: their command line, their connections, waiting,
// and a loop that starts again when one of these is lost.

const amqp = require('amqplib');
const { Client } = require('pg');
const { parseArgs } = require('node:util');

const FALLBACK_POLL_MS = 5000; // with --listen, should a notification be lost
const RESTART_MS = 1000;

const { values } = parseArgs({
	options: {
		pg: { type: 'string' },
		amqp: { type: 'string' },
		window: { type: 'string', default: '1000' },
		'poll-ms': { type: 'string', default: '100' },
		listen: { type: 'boolean', default: false },
	},
});
if (!values.pg || !values.amqp) {
	console.error('usage: relay.js --pg CONNINFO --amqp URI [--window N] [--poll-ms N] [--listen]');
	process.exit(2);
}

// 'host=/tmp user=me dbname=shop' as what pg wants.
//
// The commits of a relay need not wait for the disk: what a crash makes them forget
// is sent once more, which at-least-once allows.  A plan made while the table was
// empty would do harm once there is a backlog, and planning is cheap beside a batch.
function pgConfig() {
	const names = {
		host: 'host', port: 'port', user: 'user', password: 'password', dbname: 'database',
		application_name: 'application_name',
	};
	const config = { options: '-c synchronous_commit=off -c plan_cache_mode=force_custom_plan' };

	for (const [, key, value] of values.pg.matchAll(/(\w+)\s*=\s*('[^']*'|\S+)/g)) {
		if (!names[key]) throw new Error(`--pg: ${key} is not known here`);
		config[names[key]] = value.replace(/^'|'$/g, '');
	}
	return config;
}

const options = {
	pg: pgConfig(),
	amqp: values.amqp,
	window: Number(values.window),
	pollMs: values.listen ? FALLBACK_POLL_MS : Number(values['poll-ms']),
	listen: values.listen,
};

const state = { stopping: false };
let woken = false;
let wakeSleeper = null;

// End the present sleep(), or the next one.
function wake() {
	woken = true;
	if (wakeSleeper) wakeSleeper();
}

async function sleep(ms) {
	if (!woken && !state.stopping) {
		await new Promise((resolve) => {
			const timer = setTimeout(resolve, ms);

			wakeSleeper = () => {
				clearTimeout(timer);
				resolve();
			};
		});
		wakeSleeper = null;
	}
	woken = false;
}

let atStop = wake;
function onStop(callback) {
	atStop = callback;
	if (state.stopping) callback();
}

process.on('SIGTERM', () => {
	state.stopping = true;
	atStop();
});

// Whoever started the relay waits for this line.
let saidReady = false;
function ready() {
	if (!saidReady) console.log('ready');
	saidReady = true;
}

// A confirm channel with publish(message), and settled(), which waits until
// everything published is confirmed and returns the ids of what no queue took.
class Publisher {
	static async open() {
		const publisher = new Publisher();

		publisher.connection = await amqp.connect(options.amqp, { noDelay: true });
		publisher.connection.on('error', (error) => console.error(error.message)); // publishing fails too
		publisher.channel = await publisher.connection.createConfirmChannel();
		publisher.channel.on('error', (error) => console.error(error.message));
		publisher.channel.on('return', (message) => publisher.returned.add(message.properties.messageId));
		publisher.returned = new Set();
		return publisher;
	}

	publish(message, confirmed) {
		this.channel.publish('', message.routing_key, message.payload, {
			persistent: true,
			mandatory: true,
			messageId: message.message_id,
			contentType: 'application/octet-stream',
		}, confirmed);
	}

	async settled() {
		const returned = this.returned;

		await this.channel.waitForConfirms();
		this.returned = new Set();
		if (returned.size) console.error(`${returned.size} messages were returned`);
		return returned;
	}

	async close() {
		await this.connection.close().catch(() => {});
	}
}

async function connectPostgres() {
	const client = new Client(options.pg);

	client.on('error', (error) => {
		console.error(error.message);
		wake();
	});
	client.on('notification', wake);
	await client.connect();
	return client;
}

// Until SIGTERM: step(client, publisher) again and again; it returns whether there
// was something to do.  With `channel` a notification there ends the wait for more.
async function run(step, channel) {
	while (!state.stopping) {
		let client, publisher;

		try {
			client = await connectPostgres();
			publisher = await Publisher.open();
			if (options.listen && channel) await client.query(`LISTEN ${channel}`);
			ready();
			while (!state.stopping) {
				if (!(await step(client, publisher))) await sleep(options.pollMs);
			}
		} catch (error) {
			console.error(error);
			await sleep(RESTART_MS);
		}
		await publisher?.close();
		await client?.end().catch(() => {});
	}
}

module.exports = { options, state, onStop, ready, run, Publisher };
