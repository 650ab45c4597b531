-- The views: what they show, in which columns, and the state that they derive.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(31);

CREATE FUNCTION pg_temp.columns(name regclass) RETURNS text[] LANGUAGE sql AS $$
	SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = name AND attnum > 0 $$;

-- outbox.status
SELECT is(pg_temp.columns('outbox.status'), ARRAY['database', 'worker_pid', 'state', 'broker', 'connected_since', 'pending',
	'oldest_pending_age', 'in_flight', 'confirmed', 'returned', 'nacked', 'deferred', 'unavailable', 'dead', 'held', 'reconnects',
	'last_error', 'last_error_at'], 'outbox.status: columns');
SELECT is(pg_temp.columns('outbox.unavailable'), ARRAY['reason', 'exchange', 'routing_key', 'messages', 'oldest',
	'last_error'], 'outbox.unavailable: columns');
SELECT is(count(*), 1::bigint, 'outbox.status: one row') FROM outbox.status;
SELECT is(database, current_database(), 'outbox.status: of this database') FROM outbox.status;
SELECT ok(state IN ('stopped', 'starting', 'disabled', 'paused'), 'outbox.status: a worker without a broker is ' || state) FROM outbox.status;
SELECT ok(CASE WHEN state = 'stopped' THEN worker_pid IS NULL ELSE worker_pid IS NOT NULL END,
	'outbox.status: a pid if and only if there is a worker') FROM outbox.status;
SELECT is(row(broker, connected_since, in_flight, confirmed, returned, nacked, reconnects)::text, '(,,0,0,0,0,0)',
	'outbox.status: no broker, no connection, nothing sent') FROM outbox.status;
SELECT is(row(pending, oldest_pending_age, deferred, dead, held)::text, '(0,,0,0,0)', 'outbox.status: empty to begin with') FROM outbox.status;

-- outbox.message
SELECT is(pg_temp.columns('outbox.message'), ARRAY['id', 'message_id', 'state', 'enqueued_at', 'exchange', 'routing_key',
	'ordering_key', 'deliver_at', 'content_type', 'properties', 'headers', 'payload', 'xid', 'segment'], 'outbox.message: columns');
SELECT is_empty('SELECT * FROM outbox.message', 'outbox.message: empty to begin with');
SELECT outbox.enqueue('ex', n::text, to_jsonb(n), headers => '{"h": 1}', ordering_key => 'k', deliver_at => '2001-01-01',
		properties => '{"type": "t"}', message_id => ('00000000-0000-0000-0000-00000000000' || n)::uuid) IS NOT NULL AS ok
	FROM generate_series(1, 1) n \gset
SELECT count(outbox.enqueue('ex', n::text, 'x')) AS enqueued FROM generate_series(2, 5) n \gset
SELECT is((SELECT row(m.id, m.xid, m.enqueued_at, m.message_id, m.exchange, m.routing_key, m.ordering_key, m.deliver_at, m.content_type,
		m.properties, m.headers, m.payload)::text FROM outbox.message m WHERE routing_key = '1'),
	(SELECT s::text FROM (SELECT * FROM outbox.message_0 UNION ALL SELECT * FROM outbox.message_1
		UNION ALL SELECT * FROM outbox.message_2 UNION ALL SELECT * FROM outbox.message_3) s WHERE routing_key = '1'),
	'outbox.message: shows the row of the segment');
SELECT is((SELECT segment FROM outbox.message WHERE routing_key = '1'),
	(SELECT substr(tableoid::regclass::text, 16)::int FROM (SELECT tableoid, routing_key FROM outbox.message_0
		UNION ALL SELECT tableoid, routing_key FROM outbox.message_1 UNION ALL SELECT tableoid, routing_key FROM outbox.message_2
		UNION ALL SELECT tableoid, routing_key FROM outbox.message_3) s WHERE routing_key = '1'),
	'outbox.message: and names the segment');
SELECT results_eq('SELECT routing_key, state FROM outbox.message ORDER BY id',
	$$VALUES ('1', 'pending'), ('2', 'pending'), ('3', 'pending'), ('4', 'pending'), ('5', 'pending')$$, 'outbox.message: all are pending');

-- as recorded by the worker: the first four settled, the third set aside, the fourth given up
CREATE FUNCTION pg_temp.aside(key text) RETURNS TABLE (id bigint, xid xid8, enqueued_at timestamptz, message_id uuid,
	exchange text, routing_key text, ordering_key text, deliver_at timestamptz, content_type text, properties jsonb,
	headers jsonb, payload bytea) LANGUAGE sql AS $$
	SELECT m.id, m.xid, m.enqueued_at, m.message_id, m.exchange, m.routing_key, m.ordering_key, m.deliver_at, m.content_type,
		m.properties, m.headers, m.payload FROM outbox.message m WHERE m.routing_key = key $$;
INSERT INTO outbox.deferred SELECT a.*, 'retry', now() + interval '1h', 3, 'NO_ROUTE' FROM pg_temp.aside('3') a;
INSERT INTO outbox.dead_letter SELECT a.*, 10, 'NO_ROUTE', now() FROM pg_temp.aside('4') a;
SELECT results_eq($$SELECT routing_key, state FROM outbox.message WHERE state <> 'pending'$$,
	$$SELECT ''::text, ''::text WHERE false$$, 'outbox.message: what progress does not settle is pending, aside or not');
INSERT INTO outbox.progress_0 SELECT 1, now(), 0, '3', '3:3:', max(id), next, format('%s:%s:', next, next)::pg_snapshot, max(id),
	max(id) - 1 FROM outbox.message, LATERAL (SELECT (pg_current_xact_id()::text::bigint + 1)::text::xid8 AS next) n GROUP BY next;
SELECT results_eq('SELECT routing_key, state FROM outbox.message ORDER BY id',
	$$VALUES ('1', 'confirmed'), ('2', 'confirmed'), ('3', 'deferred'), ('4', 'dead'), ('5', 'pending')$$, 'outbox.message: states');
SELECT is(row(deferred, dead, held)::text, '(1,1,0)', 'outbox.status: counts what is aside') FROM outbox.status;
SELECT ok((SELECT bool_and(state = 'confirmed') FROM outbox.message WHERE routing_key IN ('1', '2')), 'outbox.message: once more, unchanged');
INSERT INTO outbox.progress_1 SELECT 2, now(), max(id), next, format('%s:%s:', next, next)::pg_snapshot
	FROM outbox.message, LATERAL (SELECT (pg_current_xact_id()::text::bigint + 1)::text::xid8 AS next) n GROUP BY next;
SELECT results_eq('SELECT routing_key, state FROM outbox.message ORDER BY id',
	$$VALUES ('1', 'confirmed'), ('2', 'confirmed'), ('3', 'deferred'), ('4', 'dead'), ('5', 'confirmed')$$, 'outbox.message: the window is settled');
DELETE FROM outbox.deferred;
SELECT is(state, 'confirmed', 'outbox.message: what has left deferred is confirmed') FROM outbox.message WHERE routing_key = '3';
INSERT INTO outbox.message_0 SELECT a.* FROM pg_temp.aside('1') a;
SELECT is(row(deferred, dead, held)::text, '(0,1,1)', 'outbox.status: held') FROM outbox.status;

-- views are for reading
SELECT throws_ok('DELETE FROM outbox.message', '55000', NULL, 'outbox.message cannot be written to');
SELECT throws_ok('UPDATE outbox.status SET state = NULL', '55000', NULL, 'nor outbox.status');

-- the tables aside: a message's columns first, in the same order, as the library numbers them
SELECT is((pg_temp.columns(name::regclass))[1:12], pg_temp.columns('outbox.message_0'), name || ': begins like a message')
	FROM unnest(ARRAY['outbox.deferred', 'outbox.dead_letter', 'outbox.held']) name;
SELECT is(pg_temp.columns('outbox.deferred'), pg_temp.columns('outbox.message_0') ||
	ARRAY['reason', 'due_at', 'attempts', 'last_error', 'place'], 'outbox.deferred: columns');
SELECT is(pg_temp.columns('outbox.dead_letter'), pg_temp.columns('outbox.message_0') ||
	ARRAY['attempts', 'last_error', 'died_at'], 'outbox.dead_letter: columns');
SELECT is(pg_temp.columns('outbox.held'), pg_temp.columns('outbox.message_0') ||
	ARRAY['held_at', 'number'], 'outbox.held: columns');
SELECT throws_ok($$INSERT INTO outbox.deferred SELECT a.*, 'whim', now(), 0, NULL FROM pg_temp.aside('1') a$$, '23514', NULL,
	'outbox.deferred: for three reasons only');

-- outbox.control
SELECT is(pg_temp.columns('outbox.control'), ARRAY['one', 'paused', 'database'], 'outbox.control: columns');
SELECT throws_ok('INSERT INTO outbox.control (database) VALUES (1)', '23505', NULL, 'outbox.control: one row');

SELECT * FROM finish();
ROLLBACK;
