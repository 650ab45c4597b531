-- pause(), resume() and reload(): what they leave behind, across sessions and workers.
-- Not in one transaction, as each of them is about commits; the results are judged at the end.

CREATE FUNCTION public.worker_after(before int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	found int;
BEGIN
	FOR i IN 1..1000 LOOP
		SELECT worker_pid INTO found FROM outbox.worker_status()
			WHERE state NOT IN ('stopped', 'starting') AND worker_pid IS DISTINCT FROM before;
		EXIT WHEN found IS NOT NULL;
		PERFORM pg_sleep(0.01);
	END LOOP;
	RETURN found;
END $$;
SELECT coalesce(worker_after(NULL), 0) AS first_worker \gset
SELECT paused AS at_first FROM outbox.control \gset

BEGIN;
SELECT outbox.pause() AS result \gset
SELECT paused AS in_transaction FROM outbox.control \gset
ROLLBACK;
SELECT paused AS rolled_back FROM outbox.control \gset

SELECT outbox.pause() AS result \gset
SELECT paused AS paused FROM outbox.control \gset
SELECT outbox.enqueue('ex', 'while paused', 'x') IS NOT NULL AS enqueued \gset
SELECT xmin AS version FROM outbox.control \gset
SELECT outbox.pause() AS result \gset
SELECT xmin AS version_again FROM outbox.control \gset

-- another session, another worker
\c -
SELECT paused AS other_session FROM outbox.control \gset
SELECT outbox.reload() AS result \gset
SELECT coalesce(worker_after(:first_worker), 0) AS second_worker \gset
SELECT paused AS other_worker FROM outbox.control \gset

SELECT outbox.resume() AS result \gset
SELECT paused AS resumed FROM outbox.control \gset
SELECT outbox.resume() AS result \gset
SELECT paused AS resumed_twice FROM outbox.control \gset
SELECT pending AS pending FROM outbox.backlog() \gset

-- with a search_path that leads astray, and in a transaction that may not write
CREATE SCHEMA astray;
CREATE TABLE astray.control (paused boolean);
INSERT INTO astray.control VALUES (false);
SET search_path = astray, public;
SELECT outbox.pause() AS result \gset
SELECT paused AS astray FROM astray.control \gset
SELECT paused AS not_astray FROM outbox.control \gset
RESET search_path;
SELECT outbox.resume() AS result \gset
CREATE FUNCTION public.sqlstate_of(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
BEGIN READ ONLY;
SELECT sqlstate_of('SELECT outbox.pause()') AS read_only \gset
ROLLBACK;

-- where there is no worker: once the extension is gone, and the worker has left for good
SET client_min_messages = warning;
DROP EXTENSION outbox;
CREATE FUNCTION public.reload() RETURNS void AS '$libdir/outbox', 'outbox_reload' LANGUAGE C;
DO $$ BEGIN
	FOR i IN 1..1000 LOOP
		EXIT WHEN sqlstate_of('SELECT public.reload()') <> '00000';
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
SELECT sqlstate_of('SELECT public.reload()') AS without_worker \gset
SELECT count(*) AS workers_left FROM pg_stat_activity
	WHERE backend_type = 'outbox worker' AND datname = current_database() \gset
DROP FUNCTION public.reload();
CREATE EXTENSION outbox;
SELECT coalesce(worker_after(NULL), 0) AS third_worker \gset
SELECT paused AS anew FROM outbox.control \gset

BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(20);
SELECT is(:'at_first'::text, 'f', 'not paused to begin with');
SELECT isnt(:first_worker, 0, 'CREATE EXTENSION makes a worker start');
SELECT is(:'in_transaction'::text, 't', 'pause() is seen by its own transaction');
SELECT is(:'rolled_back'::text, 'f', 'pause() is undone by ROLLBACK');
SELECT is(:'paused'::text, 't', 'pause() sets outbox.control');
SELECT is(:'enqueued'::text, 't', 'enqueue() goes on while paused');
SELECT is(:'version_again'::text, :'version', 'pause() twice writes once');
SELECT is(:'other_session'::text, 't', 'other sessions see the pause');
SELECT ok(:second_worker NOT IN (0, :first_worker), 'reload() makes another worker start');
SELECT is(:'other_worker'::text, 't', 'which finds the pause');
SELECT is(:'resumed'::text, 'f', 'resume() undoes it');
SELECT is(:'resumed_twice'::text, 'f', 'and may be called again');
SELECT is(:pending, 1, 'nothing was lost');
SELECT is(:'astray'::text, 'f', 'pause() does not go by the search_path');
SELECT is(:'not_astray'::text, 't', 'but to outbox.control');
SELECT is(:'read_only'::text, '25006', 'pause() in a read-only transaction is refused');
SELECT is(:'without_worker'::text, '55000', 'reload() without a worker is an error');
SELECT is(:workers_left, 0, 'DROP EXTENSION leaves no worker');
SELECT isnt(:third_worker, 0, 'CREATE EXTENSION makes a worker start again');
SELECT is(:'anew'::text, 'f', 'not paused');
SELECT * FROM finish();
ROLLBACK;
DROP SCHEMA astray CASCADE;
DROP FUNCTION public.worker_after(int), public.sqlstate_of(text);
