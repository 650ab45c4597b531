-- outbox.enqueue(): what ends in which column, in which order, and from where it can be called.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(37);

CREATE TEMP VIEW stored AS SELECT * FROM outbox.message_0 UNION ALL SELECT * FROM outbox.message_1
	UNION ALL SELECT * FROM outbox.message_2 UNION ALL SELECT * FROM outbox.message_3;

-- the four overloads, called alike
CREATE TEMP TABLE call (kind text, returned uuid);
INSERT INTO call VALUES ('jsonb', outbox.enqueue('ex', 'jsonb', '{"b": 1,   "a": "ü"}'::jsonb));
INSERT INTO call VALUES ('json', outbox.enqueue('ex', 'json', '{"b": 1,   "a": "ü"}'::json));
INSERT INTO call VALUES ('text', outbox.enqueue('ex', 'text', 'plain ü'::text));
INSERT INTO call VALUES ('bytea', outbox.enqueue('ex', 'bytea', '\x00ff'::bytea));
SELECT results_eq(
	'SELECT routing_key, content_type, payload FROM stored WHERE exchange = ''ex'' ORDER BY id',
	$$VALUES ('jsonb', 'application/json', convert_to('{"a": "ü", "b": 1}', 'UTF8')),
		('json', 'application/json', convert_to('{"b": 1,   "a": "ü"}', 'UTF8')),
		('text', 'text/plain', convert_to('plain ü', 'UTF8')),
		('bytea', 'application/octet-stream', '\x00ff'::bytea)$$,
	'each overload stores its payload and content type');
SELECT results_eq('SELECT message_id FROM stored WHERE exchange = ''ex'' ORDER BY id',
	'SELECT returned FROM call', 'each returns the message_id that it stores');
SELECT is_empty($$SELECT id FROM stored WHERE num_nulls(ordering_key, deliver_at, properties, headers) <> 4$$,
	'what was not given is NULL');
SELECT is(count(DISTINCT xid), 1::bigint, 'one transaction, one xid') FROM stored;
SELECT is(min(xid), pg_current_xact_id(), 'which is that of the transaction') FROM stored;
SELECT ok(bool_and(enqueued_at BETWEEN now() AND clock_timestamp()), 'enqueued_at is the time of the call') FROM stored;

-- every argument, in each overload
SELECT lives_ok(format($$SELECT outbox.enqueue('all', %L, '"x"'::%s, '{"h": 1}', 'k', '2001-02-03 04:05:06+00',
	'00000000-0000-0000-0000-000000000001', '{"type": "t", "content_type": "text/csv"}')$$, kind, kind),
	'all arguments by position: ' || kind) FROM call;
SELECT results_eq($$SELECT routing_key, ordering_key, deliver_at, message_id, content_type, properties, headers,
		convert_from(payload, 'UTF8') COLLATE "default" FROM stored WHERE exchange = 'all' ORDER BY id$$,
	$$SELECT kind, 'k'::text, '2001-02-03 04:05:06+00'::timestamptz, '00000000-0000-0000-0000-000000000001'::uuid,
		'text/csv'::text, '{"type": "t", "content_type": "text/csv"}'::jsonb, '{"h": 1}'::jsonb, '"x"'::text FROM call$$,
	'each argument is in its column, and content_type in properties wins');
SELECT lives_ok($$SELECT outbox.enqueue(properties => '{"type": "t"}', message_id => '00000000-0000-0000-0000-000000000002',
	deliver_at => now(), ordering_key => 'k', headers => '{}', payload => 'x'::text, routing_key => 'r', exchange => 'named')$$,
	'all arguments by name');
SELECT is((SELECT row(routing_key, ordering_key, deliver_at, message_id, headers, properties)::text FROM stored WHERE exchange = 'named'),
	row('r'::text, 'k'::text, now(), '00000000-0000-0000-0000-000000000002'::uuid, '{}'::jsonb, '{"type": "t"}'::jsonb)::text,
	'arrive in the same columns');

-- the order of the calls is the order of the ids
SELECT count(outbox.enqueue('order', n::text, 'x')) AS enqueued FROM generate_series(1, 200) n \gset
DO $$ BEGIN
	FOR n IN 201..210 LOOP
		PERFORM outbox.enqueue('order', n::text, to_jsonb(n));
		PERFORM outbox.enqueue('other', n::text, 'x'::bytea);
	END LOOP;
END $$;
SELECT is(array_agg(routing_key::int ORDER BY id), ARRAY(SELECT generate_series(1, 210)),
	'ids ascend in the order of the calls') FROM stored WHERE exchange = 'order';
SELECT is(max(id) - min(id) + 1, count(*), 'without gaps, in one session') FROM stored;
SELECT is(max(id), (SELECT last_value FROM outbox.message_id_seq), 'drawn from the sequence') FROM stored;

-- xid is that of the top-level transaction, wherever the call is made
SAVEPOINT a;
SELECT outbox.enqueue('nested', 'in a savepoint', 'x') IS NOT NULL AS ok \gset
SAVEPOINT b;
CREATE TEMP TABLE gives_the_subtransaction_its_xid ();
SELECT outbox.enqueue('nested', 'two deep', 'x') IS NOT NULL AS ok \gset
RELEASE b;
RELEASE a;
DO $$ BEGIN
	BEGIN
		CREATE TEMP TABLE another ();
		PERFORM outbox.enqueue('nested', 'in a block', 'x');
	EXCEPTION WHEN division_by_zero THEN
		RAISE;
	END;
	BEGIN
		PERFORM outbox.enqueue('nested', 'in a block that failed', 'x');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM outbox.enqueue('nested', 'in a handler', 'x');
	END;
END $$;
SAVEPOINT c;
SELECT outbox.enqueue('nested', 'undone', 'x') IS NOT NULL AS ok \gset
ROLLBACK TO c;
SELECT results_eq($$SELECT routing_key, xid = pg_current_xact_id() FROM stored WHERE exchange = 'nested' ORDER BY id$$,
	$$VALUES ('in a savepoint', true), ('two deep', true), ('in a block', true), ('in a handler', true)$$,
	'savepoints and blocks store the xid of the transaction; undone ones store nothing');
SELECT isnt((SELECT xmin::text FROM outbox.message_0 WHERE routing_key = 'two deep'
	UNION ALL SELECT xmin::text FROM outbox.message_1 WHERE routing_key = 'two deep'
	UNION ALL SELECT xmin::text FROM outbox.message_2 WHERE routing_key = 'two deep'
	UNION ALL SELECT xmin::text FROM outbox.message_3 WHERE routing_key = 'two deep'),
	(pg_current_xact_id()::text::bigint % 4294967296)::text, 'although the row was written by a subtransaction');

-- outbox.headers
SET LOCAL outbox.headers = '{"trace": "t-1", "both": {"setting": 1}}';
SELECT outbox.enqueue('headers', 'setting', 'x'), outbox.enqueue('headers', 'both', 'x', headers => '{"both": {"call": 2}, "own": [1]}'),
	outbox.enqueue('headers', 'empty call', 'x', headers => '{}') \gset ignored_
SET LOCAL outbox.headers = '{"trace": "t-2"}';
SELECT outbox.enqueue('headers', 'changed', 'x') \gset ignored_
SAVEPOINT h;
SET LOCAL outbox.headers = '{"trace": "t-3"}';
ROLLBACK TO h;
SELECT outbox.enqueue('headers', 'rolled back', 'x') \gset ignored_
SET LOCAL outbox.headers = '';
SELECT outbox.enqueue('headers', 'none', 'x'), outbox.enqueue('headers', 'call', 'x', headers => '{"own": 1}') \gset ignored_
SELECT results_eq($$SELECT routing_key, headers FROM stored WHERE exchange = 'headers' ORDER BY id$$,
	$$VALUES ('setting', '{"trace": "t-1", "both": {"setting": 1}}'::jsonb),
		('both', '{"trace": "t-1", "both": {"call": 2}, "own": [1]}'),
		('empty call', '{"trace": "t-1", "both": {"setting": 1}}'),
		('changed', '{"trace": "t-2"}'), ('rolled back', '{"trace": "t-2"}'),
		('none', NULL), ('call', '{"own": 1}')$$,
	'headers of the setting are added, those of the call win, name by name');

-- UUID version 7
SELECT count(outbox.enqueue('v7', 'key', 'x')) AS enqueued FROM generate_series(1, 2000) \gset
SELECT is(count(DISTINCT message_id), 2000::bigint, 'UUIDs are distinct') FROM stored WHERE exchange = 'v7';
SELECT ok(bool_and(substr(message_id::text, 15, 1) = '7'), 'version 7') FROM stored WHERE exchange = 'v7';
SELECT ok(bool_and(substr(message_id::text, 20, 1) IN ('8', '9', 'a', 'b')), 'variant of RFC 9562') FROM stored WHERE exchange = 'v7';
SELECT is(array_agg(message_id ORDER BY id), array_agg(message_id ORDER BY message_id), 'they ascend from call to call')
	FROM stored WHERE exchange = 'v7';
SELECT ok(bool_and(abs(extract(epoch FROM enqueued_at) * 1000 -
	('x' || translate(left(message_id::text, 13), '-', ''))::bit(48)::bigint) < 1000), 'and begin with the time')
	FROM stored WHERE exchange = 'v7';

-- large payloads
SELECT outbox.enqueue('large', 'text', repeat('0123456789', 200000)),
	outbox.enqueue('large', 'bytea', convert_to(repeat('0123456789', 200000), 'UTF8')) \gset ignored_
SELECT is(count(*), 2::bigint, 'large payloads come back as they were') FROM stored
	WHERE exchange = 'large' AND payload = convert_to(repeat('0123456789', 200000), 'UTF8');

-- where it is called from, with nothing in the search_path
CREATE SCHEMA app;
CREATE TABLE app.orders (id int PRIMARY KEY, note text);
CREATE FUNCTION app.publish() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
	PERFORM outbox.enqueue('trigger', TG_OP || '.' || TG_LEVEL, pg_catalog.to_jsonb(NEW));
	RETURN NULL;
END $$;
CREATE FUNCTION app.in_sql(note text) RETURNS uuid LANGUAGE sql SET search_path = '' AS
	$$SELECT outbox.enqueue('sql', 'function', note)$$;
CREATE FUNCTION app.definer(note text) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS
	$$BEGIN RETURN outbox.enqueue('definer', 'function', note); END$$;
CREATE PROCEDURE app.in_procedure() LANGUAGE plpgsql SET search_path = '' AS
	$$BEGIN PERFORM outbox.enqueue('procedure', 'call', 'x'::pg_catalog.text); END$$;
CREATE TRIGGER publish AFTER INSERT OR UPDATE ON app.orders FOR EACH ROW EXECUTE FUNCTION app.publish();
CREATE TRIGGER at_end AFTER DELETE ON app.orders FOR EACH STATEMENT EXECUTE FUNCTION app.publish();
SET LOCAL search_path = '';
SELECT outbox.enqueue('plain', 'key', 'x') IS NOT NULL AS ok \gset
INSERT INTO app.orders VALUES (1, 'a'), (2, 'b');
UPDATE app.orders SET note = 'c' WHERE id = 1;
DO $$ BEGIN PERFORM outbox.enqueue('do', 'key', 'x'); END $$;
SELECT app.in_sql('x') IS NOT NULL AND app.definer('x') IS NOT NULL AS ok \gset
CALL app.in_procedure();
PREPARE enqueue(text, text, jsonb) AS SELECT outbox.enqueue($1, $2, $3) IS NOT NULL AS ok;
EXECUTE enqueue('prepared', 'key', '1') \gset ignored_
WITH new AS (INSERT INTO app.orders VALUES (3, 'd') RETURNING id)
	SELECT outbox.enqueue('with', 'key', new.id::pg_catalog.text) IS NOT NULL AS ok FROM new \gset
SET LOCAL search_path = public, pg_catalog;
SELECT results_eq($$SELECT exchange, routing_key, convert_from(payload, 'UTF8') COLLATE "default" FROM stored WHERE exchange = 'trigger' ORDER BY id$$,
	$$VALUES ('trigger', 'INSERT.ROW', '{"id": 1, "note": "a"}'), ('trigger', 'INSERT.ROW', '{"id": 2, "note": "b"}'),
		('trigger', 'UPDATE.ROW', '{"id": 1, "note": "c"}'), ('trigger', 'INSERT.ROW', '{"id": 3, "note": "d"}')$$,
	'a trigger enqueues what it sees, with an empty search_path');
SELECT is(count(*), 1::bigint, 'called from: ' || source)
	FROM unnest(ARRAY['plain', 'do', 'sql', 'definer', 'procedure', 'prepared', 'with']) source
	JOIN pg_temp.stored ON exchange = source GROUP BY source ORDER BY source;
-- an error in a trigger's transaction takes the message with it
SELECT throws_ok($$INSERT INTO app.orders VALUES (4, 'e'), (1, 'twice')$$, '23505');
SELECT is_empty($$SELECT id FROM stored WHERE convert_from(payload, 'UTF8') ~ '"e"' AND exchange = 'trigger'$$,
	'a statement that fails enqueues nothing');

SELECT is((SELECT count(*) FROM outbox.message), (SELECT count(*) FROM stored), 'outbox.message shows them all');
SELECT is(count(*), 0::bigint, 'enqueue() leaves outbox.held alone') FROM outbox.held;
SELECT * FROM finish();
ROLLBACK;
