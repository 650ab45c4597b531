--
-- Settings: their defaults and limits, and the values that are refused.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;
-- loads the library where it is not preloaded
LOAD 'outbox';

-- all but outbox.uri, which is not listed because it may hold a password
SELECT name, boot_val AS default, unit, context, vartype AS type, min_val AS min, max_val AS max,
	enumvals AS values FROM pg_settings WHERE name LIKE 'outbox.%' ORDER BY name;
-- every one is described
SELECT count(*) FROM pg_settings
	WHERE name LIKE 'outbox.%' AND (short_desc IS NULL OR extra_desc IS NULL);

-- the words of some errors differ between versions of PostgreSQL
CREATE FUNCTION pg_temp.try(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config(name, value, false);
	RETURN current_setting(name);
EXCEPTION WHEN OTHERS THEN
	RETURN 'error ' || SQLSTATE;
END $$;

-- units and limits
SELECT name, value, pg_temp.try(name, value) FROM (VALUES
	('outbox.max_message_size', '1MB'), ('outbox.max_message_size', '600MB'),
	('outbox.heartbeat', '1min'), ('outbox.heartbeat', '0'),
	('outbox.in_flight_messages', '1'), ('outbox.in_flight_messages', '0'),
	('outbox.durability', 'local'), ('outbox.durability', 'remote_apply'),
	('outbox.max_databases', '10')) v (name, value);
RESET ALL;

-- names that do not exist
SET outbox.url = 'amqp://localhost';

-- outbox.headers
SET outbox.headers = '{"a": {"b": [1, "}"]}}';
SHOW outbox.headers;
SET outbox.headers = ' {} ';
SET outbox.headers = '';
SET outbox.headers = '{"a": 1';
SET outbox.headers = '{"a": 1} x';
SET outbox.headers = '[1]';
SET outbox.headers = '"a"';
SET outbox.headers = 'null';
SET outbox.headers = ' ';
SELECT pg_temp.try('outbox.headers', '{"a":' || repeat('[', 100000));
SELECT current_setting('outbox.headers');

-- outbox.uri: never shown back when it is refused
SET outbox.uri = 'amqp://alice@one.example:5673/vhost, amqp://alice@two.example';
SHOW outbox.uri;
SET outbox.uri = 'http://alice:secret@one.example';
SET outbox.uri = 'amqp://alice:secret@one.example:port';
SET outbox.uri = 'amqp://alice@one.example, amqps://alice:secret@two.example';
SHOW outbox.uri;
-- with a password: in a session, but not where every user can read it
SET outbox.uri = 'amqp://alice:secret@one.example, amqp://bob@[::1]:5671/v, amqp://carol:se%40cret@two.example:5673/v';
SHOW outbox.uri;
SELECT current_setting('outbox.uri') LIKE '%cret%' AS shown;
SELECT count(*) FROM pg_settings WHERE concat(setting, reset_val) LIKE '%cret%';
RESET outbox.uri;
SELECT current_database() AS database \gset
ALTER DATABASE :"database" SET outbox.uri = 'amqp://alice:secret@one.example';
\echo :SQLSTATE
ALTER ROLE CURRENT_USER SET outbox.uri = 'amqp://alice@one.example, amqp://alice:secret@two.example';
ALTER ROLE CURRENT_USER IN DATABASE :"database" SET outbox.uri = 'amqp://alice:secret@one.example';
ALTER ROLE ALL SET outbox.uri = 'amqp://alice:secret@one.example';
CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql
	SET outbox.uri = 'amqp://alice:secret@one.example' AS 'SELECT 1';
SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text LIKE '%secret%';
-- without a password it may be set for a database, and a new session has it
ALTER DATABASE :"database" SET outbox.uri = 'amqp://alice@one.example';
\c -
SHOW outbox.uri;
ALTER DATABASE :"database" RESET outbox.uri;
\c -
SHOW outbox.uri;

-- who may read and set
CREATE ROLE regress_outbox_settings;
CREATE FUNCTION pg_temp.try(name text, value text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF value IS NOT NULL THEN
		PERFORM set_config(name, value, false);
	END IF;
	RETURN current_setting(name);
EXCEPTION WHEN OTHERS THEN
	RETURN 'error ' || SQLSTATE;
END $$;
SET ROLE regress_outbox_settings;
SELECT name, value, pg_temp.try(name, value) FROM (VALUES
	('outbox.uri', NULL), ('outbox.passfile', NULL), ('outbox.enabled', NULL),
	('outbox.uri', 'amqp://alice@one.example'), ('outbox.passfile', 'secrets'), ('outbox.enabled', 'off'),
	('outbox.max_message_size', '2MB'), ('outbox.headers', '{"a": 1}')) v (name, value);
SELECT count(*) FROM pg_settings WHERE name IN ('outbox.uri', 'outbox.passfile');
RESET ROLE;
DROP ROLE regress_outbox_settings;
