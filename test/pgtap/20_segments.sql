-- Segments: how they are stored, and what happens to rows that did not come through enqueue().
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(45);

CREATE TEMP TABLE segment AS SELECT 'message_' || n AS name, ('outbox.message_' || n)::regclass AS oid FROM generate_series(0, 3) n;
CREATE TEMP VIEW stored AS SELECT * FROM outbox.message_0 UNION ALL SELECT * FROM outbox.message_1
	UNION ALL SELECT * FROM outbox.message_2 UNION ALL SELECT * FROM outbox.message_3;

-- storage
SELECT is(reloptions, '{autovacuum_enabled=off,toast_tuple_target=4080}', name || ': autovacuum is off, payloads stay in their rows') FROM segment s JOIN pg_class c ON c.oid = s.oid;
SELECT is(t.reloptions, '{autovacuum_enabled=off}', name || ': and so it is for its TOAST table')
	FROM segment s JOIN pg_class c ON c.oid = s.oid JOIN pg_class t ON t.oid = c.reltoastrelid;
SELECT is(amname, 'heap', name || ': is a heap') FROM segment s JOIN pg_class c ON c.oid = s.oid JOIN pg_am a ON a.oid = c.relam;
SELECT is(relpersistence, 'p', name || ': is logged') FROM segment s JOIN pg_class c ON c.oid = s.oid;
SELECT is(attstorage, 'e', name || ': payload is not compressed')
	FROM segment s JOIN pg_attribute a ON attrelid = s.oid AND attname = 'payload';
SELECT results_eq(format('SELECT attname::text COLLATE "default", atttypid::regtype::text, attnotnull FROM pg_attribute
		WHERE attrelid = %s AND attnum > 0 ORDER BY attnum', oid::oid),
	$$VALUES ('id', 'bigint', true), ('xid', 'xid8', true), ('enqueued_at', 'timestamp with time zone', true),
		('message_id', 'uuid', true), ('exchange', 'text', true), ('routing_key', 'text', true),
		('ordering_key', 'text', false), ('deliver_at', 'timestamp with time zone', false), ('content_type', 'text', false),
		('properties', 'jsonb', false), ('headers', 'jsonb', false), ('payload', 'bytea', true)$$,
	name || ': columns') FROM segment;
SELECT results_eq(format('SELECT pg_get_indexdef(indexrelid) FROM pg_index
		WHERE indrelid = %s AND indisvalid ORDER BY indisprimary DESC', oid::oid),
	format($$VALUES ('CREATE UNIQUE INDEX %1$s_pkey ON outbox.%1$s USING btree (id)'),
		('CREATE INDEX %1$s_xid_id_idx ON outbox.%1$s USING btree (xid, id)')$$, name),
	name || ': indexes') FROM segment;

-- written by hand
INSERT INTO outbox.message_0 (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, deliver_at,
		content_type, properties, headers, payload)
	VALUES (17, '42', '2001-01-01', '00000000-0000-0000-0000-000000000001', 'inserted', 'key', 'k', '2002-02-02',
		'text/csv', '{"type": "t"}', '{"h": 1}', repeat('x', 5000)::bytea);
SELECT is_empty('SELECT id FROM stored', 'INSERT by hand does not reach the segment');
SELECT is((SELECT row(id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, deliver_at, content_type,
		properties, headers, payload)::text FROM outbox.held),
	row(17, '42'::xid8, '2001-01-01'::timestamptz, '00000000-0000-0000-0000-000000000001'::uuid, 'inserted', 'key', 'k',
		'2002-02-02'::timestamptz, 'text/csv', '{"type": "t"}'::jsonb, '{"h": 1}'::jsonb, repeat('x', 5000)::bytea)::text,
	'but outbox.held, as it is');
SELECT ok(held_at BETWEEN now() AND clock_timestamp(), 'with the time when that was') FROM outbox.held;
INSERT INTO outbox.message_1 (id, xid, enqueued_at, message_id, exchange, routing_key, payload)
	SELECT n, '42', now(), gen_random_uuid(), 'select', 'key', '' FROM generate_series(1, 3) n;
COPY outbox.message_2 (id, xid, enqueued_at, message_id, exchange, routing_key, payload) FROM stdin;
17	42	2001-01-01 00:00:00+00	00000000-0000-0000-0000-000000000001	copied	key	\\x01
18	42	2001-01-01 00:00:00+00	00000000-0000-0000-0000-000000000001	copied	key	\\x02
\.
INSERT INTO outbox.message_3 (id, xid, enqueued_at, message_id, exchange, routing_key, payload)
	VALUES (17, '42', now(), gen_random_uuid(), 'conflict', 'key', '') ON CONFLICT (id) DO UPDATE SET exchange = 'updated';
SELECT is_empty('SELECT id FROM stored', 'nor does INSERT ... SELECT, COPY or INSERT ... ON CONFLICT');
SELECT results_eq('SELECT exchange, count(*) FROM outbox.held GROUP BY 1 ORDER BY min(number)',
	$$VALUES ('inserted', 1::bigint), ('select', 3), ('copied', 2), ('conflict', 1)$$, 'each is held, in order, the same id twice too');
SELECT is(pending, 0::bigint, 'none of them is pending') FROM outbox.backlog();
SELECT is(held, 7::bigint, 'outbox.status counts them') FROM outbox.status;
SELECT throws_ok($$INSERT INTO outbox.message_0 (id, xid, enqueued_at, message_id, exchange, routing_key)
	VALUES (1, '42', now(), gen_random_uuid(), 'no payload', 'key')$$, '23502', NULL, 'a row that is no message is refused');
SELECT throws_ok('SELECT outbox.hold_row()', '39P01', NULL, 'hold_row() is a trigger');

-- brought by logical replication, whose apply worker runs like this
SELECT outbox.enqueue('own', 'key', 'x') IS NOT NULL AS ok \gset
INSERT INTO outbox.dead_letter (id, xid, enqueued_at, message_id, exchange, routing_key, payload, attempts)
	VALUES (1, '42', now(), gen_random_uuid(), 'own', 'key', '', 1);
SELECT count(*) AS held_before FROM outbox.held \gset
SET LOCAL session_replication_role = replica;
INSERT INTO outbox.message_0 (id, xid, enqueued_at, message_id, exchange, routing_key, payload)
	VALUES (1000, '42', now(), gen_random_uuid(), 'replicated', 'key', '');
UPDATE outbox.message_0 SET exchange = 'replicated';
DELETE FROM outbox.message_0;
INSERT INTO outbox.held (id, xid, enqueued_at, message_id, exchange, routing_key, payload)
	VALUES (1000, '42', now(), gen_random_uuid(), 'replicated', 'key', '');
INSERT INTO outbox.progress_0 (number, recorded_at, settled_last_id, settled_next_xid, settled_snapshot)
	VALUES (1000000, now(), 1000000, '1000000', '1000000:1000000:');
INSERT INTO outbox.progress_1 (number, recorded_at, settled_last_id, settled_next_xid, settled_snapshot)
	VALUES (1000000, now(), 1000000, '1000000', '1000000:1000000:');
UPDATE outbox.control SET paused = true;
DELETE FROM outbox.control;
UPDATE outbox.dead_letter SET exchange = 'replicated';
DELETE FROM outbox.dead_letter;
INSERT INTO outbox.deferred (id, xid, enqueued_at, message_id, exchange, routing_key, payload, reason, due_at, attempts)
	VALUES (1000, '42', now(), gen_random_uuid(), 'replicated', 'key', '', 'retry', now(), 1);
SELECT outbox.enqueue('own too', 'key', 'x') IS NOT NULL AS ok \gset
SET LOCAL session_replication_role = origin;
SELECT results_eq('SELECT exchange FROM stored ORDER BY id', $$VALUES ('own'), ('own too')$$,
	'a replicated change of a segment is dropped; what is enqueued is not');
SELECT is(count(*), :held_before::bigint, 'nor is it held') FROM outbox.held;
SELECT is((SELECT count(*) FROM outbox.progress_0) + (SELECT count(*) FROM outbox.progress_1), 0::bigint,
	'replicated progress is dropped');
SELECT results_eq('SELECT paused FROM outbox.control', 'VALUES (false)', 'so is a change of outbox.control');
SELECT results_eq('SELECT exchange FROM outbox.dead_letter', $$VALUES ('own')$$, 'of outbox.dead_letter');
SELECT is_empty('SELECT id FROM outbox.deferred', 'and of outbox.deferred');

-- any key is enough for a publication FOR ALL TABLES
SELECT is_empty($$SELECT c.relname FROM pg_class c WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r'
	AND relreplident = 'd' AND NOT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = c.oid AND indisprimary)$$,
	'every table has a replica identity');
SELECT is_empty($$SELECT c.relname FROM pg_class c WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r'
	AND NOT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled = 'R' AND tgname = 'drop_replicated_row')$$,
	'and drops what is replicated to it');

SELECT * FROM finish();
ROLLBACK;
