--
-- Who may do what: nothing is granted to PUBLIC, and a producer reads nothing.
--
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS outbox;
SELECT count(outbox.enqueue('warm up: what warns, warns here', 'key', 'x'));
RESET client_min_messages;

-- all of a schema with its grantees; a NULL acl of a function would mean PUBLIC
CREATE TEMP VIEW acl AS
	SELECT 'schema'::text AS kind, nspname::text AS object, a.grantee, a.privilege_type FROM pg_namespace,
		aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a WHERE nspname = 'outbox'
	UNION ALL
	SELECT CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' ELSE 'table' END, relname,
		a.grantee, a.privilege_type FROM pg_class,
		aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a
		WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'v', 'S', 'm', 'p')
	UNION ALL
	SELECT 'column', attrelid::regclass || '.' || attname, a.grantee, a.privilege_type
		FROM pg_attribute JOIN pg_class c ON c.oid = attrelid, aclexplode(attacl) a
		WHERE c.relnamespace = 'outbox'::regnamespace
	UNION ALL
	SELECT 'function', oid::regprocedure::text, a.grantee, a.privilege_type FROM pg_proc,
		aclexplode(coalesce(proacl, acldefault('f', proowner))) a
		WHERE pronamespace = 'outbox'::regnamespace;
SELECT kind, count(DISTINCT object) > 0 AS has_acl FROM acl GROUP BY kind ORDER BY kind COLLATE "C";
SELECT kind, object, privilege_type FROM acl WHERE grantee = 0;
SELECT grantee::regrole, kind, object, privilege_type FROM acl
	WHERE grantee NOT IN (SELECT nspowner FROM pg_namespace WHERE nspname = 'outbox')
	AND (kind, privilege_type) <> ('sequence', 'SELECT')
	ORDER BY kind COLLATE "C", object COLLATE "C", privilege_type, grantee::regrole::text COLLATE "C";

CREATE ROLE regress_outbox_nobody;
CREATE ROLE regress_outbox_producer;
CREATE ROLE regress_outbox_monitor IN ROLE pg_monitor;

-- one thing, tried as the current role; nothing it does stays
CREATE FUNCTION pg_temp.try(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RAISE EXCEPTION USING ERRCODE = 'P0UND', MESSAGE = 'undo';
EXCEPTION
	WHEN SQLSTATE 'P0UND' THEN RETURN 'allowed';
	WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
CREATE TEMP TABLE command (number serial, command text);
GRANT SELECT ON command TO PUBLIC;
INSERT INTO command (command) VALUES
	($$SELECT outbox.enqueue('ex', 'key', '{}'::jsonb)$$),
	($$SELECT outbox.enqueue('ex', 'key', '{}'::json)$$),
	($$SELECT outbox.enqueue('ex', 'key', 'x'::text)$$),
	($$SELECT outbox.enqueue('ex', 'key', 'x'::bytea)$$),
	('SELECT pending FROM outbox.status'),
	('SELECT payload FROM outbox.message'),
	('SELECT payload FROM outbox.message_0'),
	('SELECT payload FROM outbox.message_1'),
	('SELECT payload FROM outbox.message_2'),
	('SELECT payload FROM outbox.message_3'),
	('SELECT payload FROM outbox.deferred'),
	('SELECT payload FROM outbox.dead_letter'),
	('SELECT payload FROM outbox.held'),
	('SELECT last_id FROM outbox.progress_0'),
	('SELECT last_id FROM outbox.progress_1'),
	('SELECT paused FROM outbox.control'),
	('SELECT last_value FROM outbox.message_id_seq'),
	($$SELECT nextval('outbox.message_id_seq')$$),
	($$SELECT setval('outbox.message_id_seq', 1)$$),
	('INSERT INTO outbox.message_0 SELECT * FROM outbox.message_0'),
	('UPDATE outbox.control SET paused = true'),
	('DELETE FROM outbox.deferred'),
	('DELETE FROM outbox.dead_letter'),
	('TRUNCATE outbox.message_0'),
	('LOCK TABLE outbox.message_0 IN ROW EXCLUSIVE MODE'),
	('CREATE TABLE outbox.mine (id int)'),
	('CREATE TRIGGER t BEFORE INSERT ON outbox.message_0 FOR EACH ROW EXECUTE FUNCTION outbox.hold_row()'),
	('SELECT pending FROM outbox.backlog()'),
	('SELECT state FROM outbox.worker_status()'),
	('SELECT payload FROM outbox.stored_messages()'),
	('SELECT outbox.pause()'),
	('SELECT outbox.resume()'),
	('SELECT outbox.reload()'),
	('SELECT outbox.announce()'),
	('SELECT outbox.hold_row()'),
	($$SET LOCAL outbox.headers = '{"a": 1}'$$),
	('DROP EXTENSION outbox');

-- nobody
SET ROLE regress_outbox_nobody;
SELECT command, pg_temp.try(command) FROM command
	WHERE pg_temp.try(command) <> '42501 permission denied for schema outbox' ORDER BY number;
RESET ROLE;

-- USAGE alone opens nothing; a role that may use the schema can do what it may execute
GRANT USAGE ON SCHEMA outbox TO regress_outbox_producer;
SET ROLE regress_outbox_producer;
SELECT command, pg_temp.try(command) FROM command WHERE pg_temp.try(command) !~ '^42501' ORDER BY number;
RESET ROLE;
GRANT EXECUTE ON FUNCTION outbox.enqueue(text, text, jsonb, jsonb, text, timestamptz, uuid, jsonb)
	TO regress_outbox_producer;
SET ROLE regress_outbox_producer;
SELECT command, pg_temp.try(command) FROM command ORDER BY number;
-- what it enqueued is there, and no other role's rights were needed
SELECT outbox.enqueue('by the producer', 'key', '1'::jsonb, headers => '{"a": 1}', ordering_key => 'k',
	deliver_at => '2001-01-01', message_id => '00000000-0000-0000-0000-000000000001',
	properties => '{"type": "t"}');
RESET ROLE;
SELECT exchange, message_id, state FROM outbox.message WHERE exchange = 'by the producer';

-- a function of its owner may enqueue for those who cannot
CREATE FUNCTION public.place_order() RETURNS boolean LANGUAGE sql SECURITY DEFINER SET search_path = ''
	AS $$SELECT outbox.enqueue('orders', 'placed', '{}'::jsonb) IS NOT NULL$$;
SET ROLE regress_outbox_nobody;
SELECT public.place_order();
RESET ROLE;
DROP FUNCTION public.place_order();

-- monitoring: the same numbers as the owner sees
SELECT pending > 0 AS some, pending FROM outbox.backlog() \gset
\echo :some
SET ROLE regress_outbox_monitor;
SELECT command, pg_temp.try(command) FROM command
	WHERE pg_temp.try(command) !~ '^42501' AND command !~ 'last_value' ORDER BY number;
SELECT pending = :pending AS same FROM outbox.status;
SELECT count(*) FROM outbox.deferred;
SELECT count(*) FROM outbox.dead_letter;
SELECT count(*) FROM outbox.held;
-- and of the messages all but what is in them
SELECT attrelid::regclass AS "table", string_agg(attname, ' ' ORDER BY attnum) AS closed
FROM pg_attribute
WHERE attrelid IN ('outbox.deferred'::regclass, 'outbox.dead_letter'::regclass, 'outbox.held'::regclass)
	AND attnum > 0 AND NOT has_column_privilege(attrelid, attnum, 'SELECT')
GROUP BY attrelid ORDER BY attrelid::regclass::text COLLATE "C";
RESET ROLE;

-- who may read all data can do so here
CREATE ROLE regress_outbox_reader IN ROLE pg_read_all_data;
SET ROLE regress_outbox_reader;
SELECT command, pg_temp.try(command) FROM command WHERE pg_temp.try(command) !~ '^42501' ORDER BY number;
SELECT exchange, state FROM outbox.message WHERE exchange = 'by the producer';
RESET ROLE;
DROP ROLE regress_outbox_reader;

-- settings that may hold a secret
CREATE FUNCTION pg_temp.setting(name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN current_setting(name);
EXCEPTION WHEN insufficient_privilege THEN
	RETURN 'denied';
END $$;
SET outbox.uri = 'amqp://alice:secret@one.example';
SET outbox.passfile = 'secrets';
SET ROLE regress_outbox_nobody;
SELECT pg_temp.setting('outbox.uri'), pg_temp.setting('outbox.passfile'), pg_temp.setting('outbox.headers');
SET ROLE regress_outbox_producer;
SELECT pg_temp.setting('outbox.uri'), pg_temp.setting('outbox.passfile'), pg_temp.setting('outbox.headers');
SELECT name FROM pg_settings WHERE name IN ('outbox.uri', 'outbox.passfile')
	OR concat(setting, reset_val) LIKE '%secret%';
-- pg_monitor has pg_read_all_settings: it sees the value, but no password
SET ROLE regress_outbox_monitor;
SELECT pg_temp.setting('outbox.uri'), pg_temp.setting('outbox.passfile');
RESET ROLE;
RESET outbox.uri;
RESET outbox.passfile;

REVOKE ALL ON FUNCTION outbox.enqueue(text, text, jsonb, jsonb, text, timestamptz, uuid, jsonb)
	FROM regress_outbox_producer;
REVOKE ALL ON SCHEMA outbox FROM regress_outbox_producer;
DROP ROLE regress_outbox_nobody;
DROP ROLE regress_outbox_producer;
DROP ROLE regress_outbox_monitor;
