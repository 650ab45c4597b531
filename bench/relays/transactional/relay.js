'use strict';

// The npm package pg-transactional-outbox, with its own table, and a handler that
// publishes with amqplib and waits for the confirm.
//
// It has two listeners: one polls the table through a function of its own; with
// --listen it is the one for low latency, logical replication.  (That is what is meant
// here by listening: it has no LISTEN, and needs wal_level = logical.)
//
// Each message is a transaction of its own: the row is locked, the handler called, the
// row marked; the package knows no other way.  So it is bounded by processor time, once
// there are connections enough: of 10, 20 and 50 these were the fastest on two cores.
// Otherwise as its documentation advises for throughput: messages that may go in
// parallel, large batches, no protection against poisonous messages (its default for an
// outbox), and removal of what is done soon.
//
// Its replication listener does not survive the loss of the connection that removes:
// that is left to whoever starts programs again.

const {
	createReplicationSemaphoreConcurrencyController,
	getDefaultLogger,
	initializePollingMessageListener,
	initializeReplicationMessageListener,
} = require('pg-transactional-outbox');
const { setTimeout: delay } = require('node:timers/promises');
const { Publisher, onStop, options, ready, state } = require('../common');

const CONNECTIONS = options.listen ? 20 : 50;
const RESTART_MS = 1000;

const config = {
	outboxOrInbox: 'outbox',
	dbListenerConfig: options.pg,
	dbHandlerConfig: { ...options.pg, max: CONNECTIONS },
	settings: {
		dbSchema: 'transactional',
		dbTable: 'outbox',
		enableMaxAttemptsProtection: false,
		enablePoisonousMessageProtection: false,
		maxAttempts: 30000,
		messageCleanupIntervalInMs: 1000,
		messageCleanupProcessedInSec: 1,
		// of the one listener
		dbPublication: 'relay_publication',
		dbReplicationSlot: 'relay_slot',
		// of the other
		nextMessagesFunctionSchema: 'transactional',
		nextMessagesFunctionName: 'next_outbox_messages',
		nextMessagesLockInMs: 15_000, // much more than a batch takes; a failed message waits so long
		nextMessagesPollingIntervalInMs: options.pollMs,
	},
};

// How many shall be processed, given how many are: the function that finds the next
// reads all that wait, so it pays to ask for many at once.
async function batchSize(busy) {
	if (busy <= options.window / 2) return options.window;
	await delay(1);
	return busy;
}

// A publisher; another one takes its place if the connection is lost.
let publisher;
async function openPublisher() {
	for (;;) {
		try {
			const opened = await Publisher.open();

			opened.connection.on('close', () => {
				if (!state.stopping) publisher = openPublisher();
			});
			return opened;
		} catch (error) {
			console.error(error.message);
			await delay(RESTART_MS);
		}
	}
}

async function handle(message) {
	const open = await publisher;

	await new Promise((resolve, reject) => {
		open.publish({
			message_id: message.id,
			routing_key: message.metadata.routing_key,
			payload: Buffer.from(message.payload, 'base64'),
		}, (error) => (error ? reject(error) : resolve()));
	});
	if (open.returned.delete(message.id)) throw new Error('no queue takes it');
}

async function main() {
	const logger = getDefaultLogger('outbox');

	logger.level = 'warn';
	publisher = openPublisher();
	await publisher;
	ready();
	const [shutdown] = options.listen
		? initializeReplicationMessageListener(config, { handle }, logger, {
			concurrencyStrategy: createReplicationSemaphoreConcurrencyController(CONNECTIONS),
		})
		: initializePollingMessageListener(config, { handle }, logger, { batchSizeStrategy: batchSize });

	onStop(async () => {
		await shutdown();
		await (await publisher).close();
		process.exit(0);
	});
}

main();
