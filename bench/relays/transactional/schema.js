'use strict';

// Prints what pg-transactional-outbox itself creates in the database, for its polling
// or, with --listen, its replication listener.

const { DatabaseSetupExporter } = require('pg-transactional-outbox');

const config = {
	outboxOrInbox: 'outbox',
	database: 'bench',
	schema: 'transactional',
	table: 'outbox',
	listenerRole: 'CURRENT_USER',
	nextMessagesName: 'next_outbox_messages',
	publication: 'relay_publication',
	replicationSlot: 'relay_slot',
};
const skipRoles = true;

console.log(process.argv[2] === '--listen'
	? DatabaseSetupExporter.createReplicationScript(config, skipRoles)
	: DatabaseSetupExporter.createPollingScript(config, skipRoles));
