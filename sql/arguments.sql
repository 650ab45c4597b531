--
-- outbox.enqueue(): what it stores for each argument, and what it refuses.
--
-- All in one transaction that is rolled back: nothing is left for other tests.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

\set ON_ERROR_ROLLBACK on
BEGIN;
CREATE TEMP VIEW stored AS
	SELECT * FROM outbox.message_0 UNION ALL SELECT * FROM outbox.message_1 UNION ALL
	SELECT * FROM outbox.message_2 UNION ALL SELECT * FROM outbox.message_3;
-- the message stored last
CREATE TEMP VIEW latest AS SELECT * FROM stored ORDER BY id DESC LIMIT 1;

--
-- payload types
--
SELECT outbox.enqueue('ex', 'key', '{"b": 1,  "a": "ü"}'::jsonb) IS NOT NULL AS ok;
SELECT exchange, routing_key, ordering_key, deliver_at, content_type, properties, headers,
	convert_from(payload, 'UTF8') AS payload FROM latest;
SELECT outbox.enqueue('ex', 'key', '{"b": 1,  "a": "ü"}'::json) IS NOT NULL AS ok;
SELECT content_type, convert_from(payload, 'UTF8') AS payload FROM latest;
SELECT outbox.enqueue('ex', 'key', 'plain ü'::text) IS NOT NULL AS ok;
SELECT content_type, convert_from(payload, 'UTF8') AS payload FROM latest;
SELECT outbox.enqueue('ex', 'key', '\x00ff'::bytea) IS NOT NULL AS ok;
SELECT content_type, payload FROM latest;
-- an untyped literal is text
SELECT outbox.enqueue('ex', 'key', '{"a": 1}') IS NOT NULL AS ok;
SELECT content_type FROM latest;
-- empty payloads, JSON null
SELECT outbox.enqueue('ex', 'key', '') IS NOT NULL AS ok;
SELECT length(payload) FROM latest;
SELECT outbox.enqueue('ex', 'key', 'null'::jsonb) IS NOT NULL AS ok;
SELECT convert_from(payload, 'UTF8') AS payload FROM latest;
-- values that are toasted where they come from
CREATE TEMP TABLE big (t text, b bytea, j jsonb);
ALTER TABLE big ALTER COLUMN b SET STORAGE EXTERNAL;
INSERT INTO big SELECT s, convert_to(s, 'UTF8'), to_jsonb(s) FROM repeat('0123456789', 100000) s;
SELECT count(outbox.enqueue('ex', 'key', t)) + count(outbox.enqueue('ex', 'key', b)) +
	count(outbox.enqueue('ex', 'key', j)) AS stored FROM big;
SELECT content_type, length(payload),
	trim('"' FROM convert_from(payload, 'UTF8')) = repeat('0123456789', 100000) AS same
	FROM stored WHERE length(payload) > 10000 ORDER BY id;

--
-- exchange, routing_key, ordering_key
--
SELECT outbox.enqueue(NULL, 'key', 'x');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', NULL, 'x');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', NULL::text);
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', NULL::jsonb);
SELECT outbox.enqueue('ex', 'key', NULL::json);
SELECT outbox.enqueue('ex', 'key', NULL::bytea);
-- the default exchange, an empty routing key, exchanges of the broker itself
SELECT outbox.enqueue('', 'queue', 'x') IS NOT NULL AS ok;
SELECT outbox.enqueue('amq.fanout', '', 'x') IS NOT NULL AS ok;
SELECT exchange, routing_key FROM latest;
-- 255 bytes of UTF-8, not characters
SELECT outbox.enqueue(repeat('e', 255), repeat('r', 255), 'x',
	ordering_key => repeat('o', 253) || 'ü') IS NOT NULL AS ok;
SELECT octet_length(exchange), octet_length(routing_key), octet_length(ordering_key) FROM latest;
SELECT outbox.enqueue(repeat('e', 256), 'key', 'x');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', repeat('r', 254) || 'ü', 'x');
SELECT outbox.enqueue('ex', 'key', 'x', ordering_key => repeat('o', 1000));
SELECT outbox.enqueue('ex', 'key', 'x', ordering_key => '');
\echo :SQLSTATE

--
-- deliver_at, message_id
--
SELECT outbox.enqueue('ex', 'key', 'x', deliver_at => '2001-02-03 04:05:06.789+00') IS NOT NULL AS ok;
SELECT deliver_at = '2001-02-03 04:05:06.789+00' AS same FROM latest;
SELECT outbox.enqueue('ex', 'key', 'x', deliver_at => 'infinity');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', deliver_at => '-infinity');
SELECT outbox.enqueue('ex', 'key', 'x', message_id => '00000000-0000-0000-0000-000000000001');
SELECT message_id FROM latest;
-- returned is what is stored; the default is a version 7, ascending with the id
SELECT outbox.enqueue('ex', 'key', 'x') AS returned \gset
SELECT message_id = :'returned' AS same FROM latest;
SELECT count(outbox.enqueue('v7', 'key', 'x')) FROM generate_series(1, 1000);
SELECT bool_and(message_id::text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') AS version_7,
	bool_and(message_id > previous) FILTER (WHERE previous IS NOT NULL) AS ascending,
	count(DISTINCT message_id) AS distinct_ids
	FROM (SELECT message_id, lag(message_id) OVER (ORDER BY id) AS previous
		  FROM stored WHERE exchange = 'v7') s;
SELECT bool_and(abs(extract(epoch FROM enqueued_at) * 1000 -
	('x' || translate(left(message_id::text, 13), '-', ''))::bit(48)::bigint) < 10000) AS of_now
	FROM stored WHERE exchange = 'v7';

--
-- transaction id and id
--
SELECT xid = pg_current_xact_id() AS own_xid, id = currval('outbox.message_id_seq') AS own_id FROM latest;
SAVEPOINT s;
SELECT outbox.enqueue('in savepoint', 'key', 'x') IS NOT NULL AS ok;
SELECT exchange, xid = pg_current_xact_id() AS top_level_xid FROM latest;
ROLLBACK TO s;
SELECT count(*) FROM stored WHERE exchange = 'in savepoint';

--
-- message size
--
SET LOCAL outbox.max_message_size = '1kB';
SELECT outbox.enqueue('ex', 'key', repeat('x', 1024)) IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', repeat('x', 1025));
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', repeat('ü', 513));
SELECT outbox.enqueue('ex', 'key', convert_to(repeat('x', 1025), 'UTF8'));
SELECT outbox.enqueue('ex', 'key', to_json(repeat('x', 1023)));
SELECT outbox.enqueue('ex', 'key', to_jsonb(repeat('x', 1023)));
RESET outbox.max_message_size;

--
-- headers
--
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{}') IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', headers =>
	'{"string": "ü", "integer": -1, "big": 9223372036854775807, "double": 1.5, "beyond": 1e30,
	  "yes": true, "null": null, "array": [1, "a", [], {}], "object": {"a": {"b": [null]}},
	  "CC": ["a", "b"], "BCC": []}') IS NOT NULL AS ok;
SELECT key, value FROM latest, jsonb_each(headers);
SELECT outbox.enqueue('ex', 'key', 'x', headers => '[]');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '"a"');
SELECT outbox.enqueue('ex', 'key', 'x', headers => 'null');
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"": 1}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"a": [{"": 1}]}');
SELECT outbox.enqueue('ex', 'key', 'x', headers => jsonb_build_object(repeat('n', 255), 1)) IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', headers => jsonb_build_object(repeat('n', 256), 1));
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers =>
	jsonb_build_object('a', jsonb_build_object(repeat('ü', 128), 1)));
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"a": 1e400}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"x-outbox-id": 1}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"x-outbox-mine": 1}');
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"a": {"x-outbox-id": 1}}') IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"CC": "a"}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"BCC": ["a", 1]}');
SELECT outbox.enqueue('ex', 'key', 'x', headers => jsonb_build_object('CC', jsonb_build_array(repeat('k', 256))));
-- nesting
SELECT outbox.enqueue('ex', 'key', 'x', headers =>
	('{"deep": ' || repeat('[', 32) || repeat(']', 32) || '}')::jsonb) IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', headers =>
	('{"deep": ' || repeat('[', 33) || repeat(']', 33) || '}')::jsonb);
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers =>
	('{"deep": ' || repeat('{"a":', 32) || '[]' || repeat('}', 32) || '}')::jsonb);
-- one frame
SELECT outbox.enqueue('ex', 'key', 'x', headers => jsonb_build_object('a', repeat('x', 130000))) IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', headers => jsonb_build_object('a', repeat('x', 131000)));
\echo :SQLSTATE

--
-- properties
--
SELECT outbox.enqueue('ex', 'key', 'x', properties =>
	'{"content_type": "text/csv", "content_encoding": "identity", "correlation_id": "c", "reply_to": "q",
	  "expiration": 60000, "type": "t", "user_id": "u", "app_id": "a", "priority": 255,
	  "timestamp": 1700000000, "delivery_mode": 1, "mandatory": false}') IS NOT NULL AS ok;
SELECT content_type FROM latest;
SELECT key, value FROM latest, jsonb_each(properties);
SELECT outbox.enqueue('ex', 'key', '1'::jsonb, properties => '{}') IS NOT NULL AS ok;
SELECT content_type FROM latest;
-- null is as good as absent
SELECT outbox.enqueue('ex', 'key', '1'::jsonb, properties =>
	'{"content_type": null, "expiration": null, "priority": null, "timestamp": null, "mandatory": null}')
	IS NOT NULL AS ok;
SELECT content_type FROM latest;
SELECT outbox.enqueue('ex', 'key', 'x', properties => '1');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"colour": "red"}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"cluster_id": "c"}');
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"message_id": "m"}');
SELECT outbox.enqueue('ex', 'key', 'x', properties => jsonb_build_object(repeat('ü', 100), 1));
-- texts
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"type": 1}');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"app_id": ["a"]}');
SELECT outbox.enqueue('ex', 'key', 'x', properties => jsonb_build_object('type', repeat('ü', 127))) IS NOT NULL AS ok;
SELECT outbox.enqueue('ex', 'key', 'x', properties => jsonb_build_object('type', repeat('ü', 128)));
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', properties => jsonb_build_object('content_type', repeat('c', 256)));
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"reply_to": "amq.rabbitmq.reply-to"}');
\echo :SQLSTATE
-- answers to requests that came by direct reply-to
SELECT outbox.enqueue('', 'amq.rabbitmq.reply-to.a.b', 'x');
\echo :SQLSTATE
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"CC": ["other", "amq.rabbitmq.reply-to.a.b"]}');
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"BCC": ["amq.rabbitmq.reply-to."]}');
SELECT count(outbox.enqueue('', key, 'x')) FROM unnest(ARRAY['amq.rabbitmq.reply-to', 'a.amq.rabbitmq.reply-to.b']) key;
-- the rest: accepted or refused
CREATE FUNCTION pg_temp.try(properties jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.enqueue('ex', 'key', 'x', properties => $1);
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT p AS properties, pg_temp.try(p::jsonb) FROM unnest(ARRAY[
	'{"expiration": 0}', '{"expiration": "0"}', '{"expiration": 4294967295}', '{"expiration": "4294967295"}',
	'{"expiration": 4294967296}', '{"expiration": "4294967296"}', '{"expiration": -1}', '{"expiration": "-1"}',
	'{"expiration": 1.5}', '{"expiration": ""}', '{"expiration": "1 s"}', '{"expiration": "99999999999999999999"}',
	'{"expiration": true}',
	'{"priority": 0}', '{"priority": 256}', '{"priority": -1}', '{"priority": 1.0}', '{"priority": "1"}',
	'{"delivery_mode": 2}', '{"delivery_mode": "transient"}', '{"delivery_mode": "persistent"}',
	'{"delivery_mode": 0}', '{"delivery_mode": 3}', '{"delivery_mode": "PERSISTENT"}', '{"delivery_mode": false}',
	'{"mandatory": true}', '{"mandatory": "true"}', '{"mandatory": 1}',
	'{"timestamp": 0}', '{"timestamp": -1}', '{"timestamp": 1.5}', '{"timestamp": 1700000000000}',
	'{"timestamp": "2024-02-29T01:02:03Z"}', '{"timestamp": "2024-02-29 01:02:03.456789+05:30"}',
	'{"timestamp": "2024-02-29T01:02:03-0800"}', '{"timestamp": "2024-02-29T01:02:03+00"}',
	'{"timestamp": "2024-02-29T01:02:03"}', '{"timestamp": "2024-02-29"}', '{"timestamp": "now"}',
	'{"timestamp": "2024-02-29T01:02:03.Z"}', '{"timestamp": "2024-02-29T01:02:03Z "}',
	'{"timestamp": "1969-12-31T23:59:59Z"}', '{"timestamp": "2023-02-29T01:02:03Z"}', '{"timestamp": [1]}'
	]) p;
-- in the name of another user
SELECT pg_temp.try('{"user_id": "anybody"}');
SET LOCAL outbox.uri = 'amqp://alice@one.example, amqp://alice@two.example';
SELECT pg_temp.try('{"user_id": "alice"}');
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"user_id": "bob"}');
\echo :SQLSTATE
SET LOCAL outbox.uri = 'amqp://alice@one.example, amqp://bob@two.example';
SELECT pg_temp.try('{"user_id": "alice"}');
RESET outbox.uri;

--
-- outbox.headers
--
SET LOCAL outbox.headers = '{"traceparent": "00-1", "both": "setting"}';
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
SELECT headers FROM latest;
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"both": "call", "more": 1}') IS NOT NULL AS ok;
SELECT headers FROM latest;
SELECT outbox.enqueue('ex', 'key', 'x', properties => '{"type": "t"}') IS NOT NULL AS ok;
SELECT headers, properties FROM latest;
SELECT outbox.enqueue('ex', 'key', 'x', headers => '[1]');
SET LOCAL outbox.headers = '{"traceparent": "00-2"}';
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
SELECT headers FROM latest;
-- what only enqueue() can judge
SET LOCAL outbox.headers = '{"x-outbox-id": 1}';
SELECT outbox.enqueue('ex', 'key', 'x');
\echo :SQLSTATE
SET LOCAL outbox.headers = '{"a": "\u0000"}';
\set VERBOSITY terse
SELECT outbox.enqueue('ex', 'key', 'x', headers => '{"a": 1}');
\set VERBOSITY default
SET LOCAL outbox.headers = '';
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
SELECT headers IS NULL AS none FROM latest;

--
-- where it is called from
--
CREATE TEMP TABLE orders (id int PRIMARY KEY, note text);
CREATE FUNCTION pg_temp.publish_order() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_temp AS $$
BEGIN
	PERFORM outbox.enqueue('orders', TG_OP, to_jsonb(NEW));
	RETURN NEW;
END $$;
CREATE TRIGGER publish AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_temp.publish_order();
INSERT INTO orders VALUES (1, 'a'), (2, 'b');
DO $$ BEGIN PERFORM outbox.enqueue('orders', 'DO', 'x'); END $$;
PREPARE enqueue(text, text, bytea) AS SELECT outbox.enqueue($1, $2, $3) IS NOT NULL AS ok;
EXECUTE enqueue('orders', 'EXECUTE', '\x01');
SELECT exchange, routing_key, content_type, convert_from(payload, 'UTF8') AS payload
	FROM stored WHERE exchange = 'orders' ORDER BY id;
-- order of the calls is order of the ids
SELECT count(outbox.enqueue('order', n::text, 'x')) FROM generate_series(1, 100) n;
SELECT bool_and(routing_key::int = n) AS in_order FROM
	(SELECT routing_key, row_number() OVER (ORDER BY id) AS n FROM stored WHERE exchange = 'order') s;
ROLLBACK;
SELECT (SELECT count(*) FROM outbox.message_0) + (SELECT count(*) FROM outbox.message_1) +
	(SELECT count(*) FROM outbox.message_2) + (SELECT count(*) FROM outbox.message_3) AS left_behind;

-- writing is not possible
BEGIN READ ONLY;
SELECT outbox.enqueue('ex', 'key', 'x');
\echo :SQLSTATE
ROLLBACK;
