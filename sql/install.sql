--
-- What CREATE EXTENSION makes, and that DROP EXTENSION takes all of it away.
--
-- "error", as a server without the library preloaded warns at each install
SET client_min_messages = error;
DROP EXTENSION IF EXISTS outbox;
DROP SCHEMA IF EXISTS outbox;
CREATE TEMP TABLE init_privs AS SELECT classoid, objoid FROM pg_init_privs;

-- the schema is not a matter of taste: the library finds its tables in it
CREATE EXTENSION outbox SCHEMA public;
CREATE SCHEMA elsewhere;
CREATE EXTENSION outbox SCHEMA elsewhere;
DROP SCHEMA elsewhere;
SELECT count(*) FROM pg_extension WHERE extname = 'outbox';

CREATE EXTENSION outbox;
SELECT extname, extnamespace::regnamespace AS schema, extrelocatable, extconfig::regclass[] FROM pg_extension
	WHERE extname = 'outbox';
ALTER EXTENSION outbox SET SCHEMA public;

-- From 17 on row types are members of their own, so no types here.
CREATE TEMP VIEW member AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, d.objsubid) AS object
	FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
	WHERE e.extname = 'outbox' AND d.deptype = 'e' AND d.classid <> 'pg_type'::regclass;
SELECT object FROM member ORDER BY object COLLATE "C";

-- nothing in the schema belongs to nobody (indexes and TOAST tables belong to their table)
SELECT c.relname FROM pg_class c
	WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind NOT IN ('i', 't', 'c')
	AND NOT EXISTS (SELECT 1 FROM member m WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid);

-- every object has a comment; the sequence of an identity column belongs to the column
SELECT object AS without_comment FROM member m
	WHERE obj_description(objid, classid::regclass::name) IS NULL
	AND NOT EXISTS (SELECT 1 FROM pg_depend d
		WHERE d.classid = m.classid AND d.objid = m.objid AND d.deptype = 'i');
SELECT obj_description('outbox'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_has_comment;

-- tables: plain heaps, without autovacuum where rows are only ever appended
SELECT c.relname, a.amname, c.relpersistence, c.reloptions, t.reloptions AS toast_options
	FROM pg_class c JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
	WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r' ORDER BY c.relname COLLATE "C";
SELECT count(*) AS without_key FROM pg_class c
	WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'
	AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);
SELECT sequencename, cache_size, increment_by, cycle FROM pg_sequences
	WHERE schemaname = 'outbox' ORDER BY sequencename COLLATE "C";
-- the functions have no reason to be run ahead, in parallel or as somebody else
SELECT bool_and(provolatile = 'v') AS volatile, bool_or(prosecdef) AS security_definer,
	bool_and(proparallel = 'u') AS parallel_unsafe FROM pg_proc
	WHERE pronamespace = 'outbox'::regnamespace;

-- to begin with
SELECT paused, database = (SELECT oid FROM pg_database WHERE datname = current_database()) AS own
	FROM outbox.control;
SELECT (SELECT count(*) FROM outbox.progress_0) + (SELECT count(*) FROM outbox.progress_1) AS progress,
	(SELECT count(*) FROM outbox.message) AS messages,
	(SELECT count(*) FROM outbox.deferred) + (SELECT count(*) FROM outbox.dead_letter) +
	(SELECT count(*) FROM outbox.held) AS aside;

-- what others use cannot be dropped from under them without CASCADE
CREATE TABLE orders (id int);
CREATE VIEW orders_overview AS SELECT pending FROM outbox.status;
\set VERBOSITY terse
DROP EXTENSION outbox;
\set VERBOSITY default
DROP VIEW orders_overview;
DROP TABLE orders;
-- no member can go alone
DROP TABLE outbox.dead_letter;
DROP FUNCTION outbox.pause();

-- DROP leaves nothing but the schema, which PostgreSQL does not count among the members
CREATE TEMP VIEW left_behind AS SELECT
	(SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text = 'outbox') AS relations,
	(SELECT count(*) FROM pg_proc WHERE pronamespace::regnamespace::text = 'outbox') AS functions,
	(SELECT count(*) FROM pg_type WHERE typnamespace::regnamespace::text = 'outbox') AS types,
	(SELECT count(*) FROM pg_init_privs p WHERE classoid <> 'pg_namespace'::regclass AND NOT EXISTS
		(SELECT 1 FROM init_privs i WHERE i.classoid = p.classoid AND i.objoid = p.objoid)) AS initial_privileges;
SELECT count(outbox.enqueue('ex', 'key', 'x')) FROM generate_series(1, 10);
DROP EXTENSION outbox;
SELECT * FROM left_behind;
\set VERBOSITY terse
SELECT outbox.enqueue('ex', 'key', 'x');
\set VERBOSITY default

-- again, into the schema that is there; the messages of last time are gone
CREATE EXTENSION outbox;
SELECT pending, oldest FROM outbox.backlog();
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
SELECT id, state FROM outbox.message;
DROP EXTENSION outbox;
SELECT * FROM left_behind;
DROP SCHEMA outbox;

-- in a transaction that is rolled back, then in one that enqueues as well
BEGIN;
CREATE EXTENSION outbox;
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
SELECT id, state FROM outbox.message;
ROLLBACK;
SELECT to_regnamespace('outbox') AS schema;
BEGIN;
CREATE EXTENSION outbox;
SELECT outbox.enqueue('ex', 'key', 'x') IS NOT NULL AS ok;
COMMIT;
SELECT pending FROM outbox.backlog();
DROP EXTENSION outbox;
CREATE EXTENSION outbox;
RESET client_min_messages;
