-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

REVOKE ALL ON SCHEMA outbox FROM PUBLIC;
COMMENT ON SCHEMA outbox IS 'transactional outbox: messages on their way to RabbitMQ';

--
-- segments: where enqueue() inserts
--

-- Drawn in enqueue() after the transaction id is assigned; the cursor relies on
-- that order and on CACHE 1 (src/cursor.c).
CREATE SEQUENCE outbox.message_id_seq CACHE 1;
COMMENT ON SEQUENCE outbox.message_id_seq IS 'ids of messages; CACHE must stay 1';

-- toast_tuple_target: as long as two rows fit into a page, a payload stays in its row, where
-- it is read without a look into an index of the TOAST table.
CREATE TABLE outbox.message_0 (
	id bigint NOT NULL,
	xid xid8 NOT NULL,
	enqueued_at timestamptz NOT NULL,
	message_id uuid NOT NULL,
	exchange text NOT NULL,
	routing_key text NOT NULL,
	ordering_key text,
	deliver_at timestamptz,
	content_type text,
	properties jsonb,
	headers jsonb,
	payload bytea NOT NULL,
	PRIMARY KEY (id)
) USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off, toast_tuple_target = 4080);
ALTER TABLE outbox.message_0 ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX message_0_xid_id_idx ON outbox.message_0 (xid, id);

CREATE TABLE outbox.message_1 (LIKE outbox.message_0 INCLUDING STORAGE, PRIMARY KEY (id))
	USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off, toast_tuple_target = 4080);
CREATE INDEX message_1_xid_id_idx ON outbox.message_1 (xid, id);

CREATE TABLE outbox.message_2 (LIKE outbox.message_0 INCLUDING STORAGE, PRIMARY KEY (id))
	USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off, toast_tuple_target = 4080);
CREATE INDEX message_2_xid_id_idx ON outbox.message_2 (xid, id);

CREATE TABLE outbox.message_3 (LIKE outbox.message_0 INCLUDING STORAGE, PRIMARY KEY (id))
	USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off, toast_tuple_target = 4080);
CREATE INDEX message_3_xid_id_idx ON outbox.message_3 (xid, id);

--
-- producers
--

CREATE FUNCTION outbox.enqueue(exchange text, routing_key text, payload jsonb,
	headers jsonb DEFAULT NULL, ordering_key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL, message_id uuid DEFAULT NULL,
	properties jsonb DEFAULT NULL)
RETURNS uuid AS 'MODULE_PATHNAME', 'outbox_enqueue_jsonb' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION outbox.enqueue(exchange text, routing_key text, payload json,
	headers jsonb DEFAULT NULL, ordering_key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL, message_id uuid DEFAULT NULL,
	properties jsonb DEFAULT NULL)
RETURNS uuid AS 'MODULE_PATHNAME', 'outbox_enqueue_json' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION outbox.enqueue(exchange text, routing_key text, payload text,
	headers jsonb DEFAULT NULL, ordering_key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL, message_id uuid DEFAULT NULL,
	properties jsonb DEFAULT NULL)
RETURNS uuid AS 'MODULE_PATHNAME', 'outbox_enqueue_text' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION outbox.enqueue(exchange text, routing_key text, payload bytea,
	headers jsonb DEFAULT NULL, ordering_key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL, message_id uuid DEFAULT NULL,
	properties jsonb DEFAULT NULL)
RETURNS uuid AS 'MODULE_PATHNAME', 'outbox_enqueue_bytea' LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON TABLE outbox.message_0 IS 'segment of the ring; append-only, emptied as a whole once all its messages are settled';
COMMENT ON TABLE outbox.message_1 IS 'segment of the ring, as message_0';
COMMENT ON TABLE outbox.message_2 IS 'segment of the ring, as message_0';
COMMENT ON TABLE outbox.message_3 IS 'segment of the ring, as message_0';
COMMENT ON COLUMN outbox.message_0.id IS 'place in the order of the calls; header x-outbox-id';
COMMENT ON COLUMN outbox.message_0.xid IS 'top-level transaction that enqueued the message';
COMMENT ON COLUMN outbox.message_0.message_id IS 'AMQP message_id: one for the life of the message';
COMMENT ON COLUMN outbox.message_0.payload IS 'AMQP body';
COMMENT ON FUNCTION outbox.enqueue(text, text, jsonb, jsonb, text, timestamptz, uuid, jsonb)
	IS 'store a message in the current transaction; it is published once that has committed';
COMMENT ON FUNCTION outbox.enqueue(text, text, json, jsonb, text, timestamptz, uuid, jsonb)
	IS 'store a message in the current transaction; it is published once that has committed';
COMMENT ON FUNCTION outbox.enqueue(text, text, text, jsonb, text, timestamptz, uuid, jsonb)
	IS 'store a message in the current transaction; it is published once that has committed';
COMMENT ON FUNCTION outbox.enqueue(text, text, bytea, jsonb, text, timestamptz, uuid, jsonb)
	IS 'store a message in the current transaction; it is published once that has committed';

--
-- progress: what is settled
--

-- Each write appends a row to one of the two tables; the newest counts.  The
-- other one is emptied meanwhile, so that a snapshot held elsewhere for hours
-- leaves no chain of dead versions behind (src/progress.c).
CREATE TABLE outbox.progress_0 (
	number bigint NOT NULL PRIMARY KEY,
	recorded_at timestamptz NOT NULL,
	settled_last_id bigint NOT NULL,
	settled_next_xid xid8 NOT NULL,
	settled_snapshot pg_snapshot NOT NULL,
	window_last_id bigint,
	window_next_xid xid8,
	window_snapshot pg_snapshot,
	window_upper_id bigint,
	last_id bigint
) USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);

CREATE TABLE outbox.progress_1 (LIKE outbox.progress_0, PRIMARY KEY (number))
	USING heap WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);

COMMENT ON TABLE outbox.progress_0 IS 'progress of the worker; the row with the highest number of both tables counts';
COMMENT ON TABLE outbox.progress_1 IS 'progress of the worker, as progress_0';
COMMENT ON COLUMN outbox.progress_0.settled_snapshot IS 'every message visible in this snapshot is settled';
COMMENT ON COLUMN outbox.progress_0.window_snapshot IS 'every message visible in this snapshot with id up to last_id is settled too';

--
-- control: what an operator asked of the worker
--

CREATE TABLE outbox.control (
	one boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
	paused boolean NOT NULL DEFAULT false,
	database oid NOT NULL
) USING heap;
INSERT INTO outbox.control (database) SELECT oid FROM pg_database WHERE datname = current_database();
COMMENT ON TABLE outbox.control IS 'one row: what an operator asked of the worker';
COMMENT ON COLUMN outbox.control.paused IS 'set by outbox.pause(), cleared by outbox.resume()';
COMMENT ON COLUMN outbox.control.database IS 'OID of the database this outbox belongs to; differs in a copy';

--
-- set aside
--

CREATE SEQUENCE outbox.deferred_place_seq CACHE 1;
COMMENT ON SEQUENCE outbox.deferred_place_seq IS 'places in the queue behind an ordering key';

CREATE TABLE outbox.deferred (
	LIKE outbox.message_0 INCLUDING STORAGE,
	reason text NOT NULL CHECK (reason IN ('scheduled', 'retry', 'behind', 'exchange', 'stalled')),
	due_at timestamptz NOT NULL,
	attempts integer NOT NULL,
	last_error text,
	place bigint NOT NULL DEFAULT nextval('outbox.deferred_place_seq'),
	PRIMARY KEY (id)
	-- vacuum would lock it exclusively to truncate it, and make way for nobody who does not wait
) USING heap WITH (vacuum_truncate = off);
CREATE INDEX deferred_due_at_place_idx ON outbox.deferred (due_at, place);
CREATE INDEX deferred_ordering_key_place_idx ON outbox.deferred (ordering_key, place)
	WHERE ordering_key IS NOT NULL AND reason <> 'scheduled';
CREATE INDEX deferred_exchange_place_idx ON outbox.deferred (exchange, place)
	WHERE reason = 'exchange';
CREATE INDEX deferred_exchange_routing_key_place_idx ON outbox.deferred (exchange, routing_key, place)
	WHERE reason = 'stalled';
COMMENT ON TABLE outbox.deferred IS 'messages that wait: for deliver_at, for another attempt, behind a message with the same ordering key, or for their destination';
COMMENT ON COLUMN outbox.deferred.reason IS 'scheduled: until deliver_at; retry: the broker did not take it; behind: a message with the same ordering key comes first; exchange: until its exchange can be used; stalled: until its exchange and routing key take messages';
COMMENT ON COLUMN outbox.deferred.due_at IS 'when it is published next; infinity while it waits for something other than time';
COMMENT ON COLUMN outbox.deferred.attempts IS 'times the broker did not take it';
COMMENT ON COLUMN outbox.deferred.place IS 'its place in the queue of its ordering key, or of its destination';

CREATE TABLE outbox.dead_letter (
	LIKE outbox.message_0 INCLUDING STORAGE,
	attempts integer NOT NULL,
	last_error text,
	died_at timestamptz NOT NULL DEFAULT now(),
	-- ids alone may come again: a dump keeps the rows, and ids begin anew where it is restored
	PRIMARY KEY (id, message_id)
) USING heap WITH (vacuum_truncate = off);
COMMENT ON TABLE outbox.dead_letter IS 'messages given up after outbox.max_attempts, with the last words of the broker';

CREATE TABLE outbox.held (
	LIKE outbox.message_0 INCLUDING STORAGE,
	held_at timestamptz NOT NULL DEFAULT now()
) USING heap;
ALTER TABLE outbox.held ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;
COMMENT ON TABLE outbox.held IS 'rows that did not come through enqueue() here (restored, written by hand); published only after outbox.release_held()';

--
-- rows that nobody enqueued here
--

CREATE FUNCTION outbox.hold_row() RETURNS trigger
AS 'MODULE_PATHNAME', 'outbox_hold_row' LANGUAGE C;
COMMENT ON FUNCTION outbox.hold_row() IS 'trigger: a row written by hand goes to outbox.held';

CREATE TRIGGER hold_row BEFORE INSERT ON outbox.message_0 FOR EACH ROW EXECUTE FUNCTION outbox.hold_row();
CREATE TRIGGER hold_row BEFORE INSERT ON outbox.message_1 FOR EACH ROW EXECUTE FUNCTION outbox.hold_row();
CREATE TRIGGER hold_row BEFORE INSERT ON outbox.message_2 FOR EACH ROW EXECUTE FUNCTION outbox.hold_row();
CREATE TRIGGER hold_row BEFORE INSERT ON outbox.message_3 FOR EACH ROW EXECUTE FUNCTION outbox.hold_row();

CREATE FUNCTION outbox.drop_replicated_row() RETURNS trigger
AS 'MODULE_PATHNAME', 'outbox_drop_replicated_row' LANGUAGE C;
COMMENT ON FUNCTION outbox.drop_replicated_row() IS 'trigger: drops a change that logical replication brought; each server has its own outbox';

-- ENABLE REPLICA: fires for logical replication's apply worker only.
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY ARRAY['message_0', 'message_1', 'message_2', 'message_3',
		'progress_0', 'progress_1', 'control', 'deferred', 'dead_letter', 'held']
	LOOP
		EXECUTE format('CREATE TRIGGER drop_replicated_row BEFORE INSERT OR UPDATE OR DELETE
			ON outbox.%I FOR EACH ROW EXECUTE FUNCTION outbox.drop_replicated_row()', name);
		EXECUTE format('ALTER TABLE outbox.%I ENABLE REPLICA TRIGGER drop_replicated_row', name);
	END LOOP;
END
$$;

--
-- operators
--

CREATE FUNCTION outbox.worker_status(
	OUT database name, OUT worker_pid integer, OUT state text, OUT broker text,
	OUT connected_since timestamptz, OUT in_flight bigint, OUT confirmed bigint,
	OUT returned bigint, OUT nacked bigint, OUT reconnects bigint,
	OUT last_error text, OUT last_error_at timestamptz)
RETURNS record AS 'MODULE_PATHNAME', 'outbox_worker_status' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.worker_status() IS 'what the worker of this database last said of itself; counters since server start';

CREATE FUNCTION outbox.backlog(OUT pending bigint, OUT oldest timestamptz)
RETURNS record AS 'MODULE_PATHNAME', 'outbox_backlog' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.backlog() IS 'messages not yet settled by recorded progress, and when the first of them was enqueued';

CREATE FUNCTION outbox.stored_messages(
	OUT id bigint, OUT xid xid8, OUT enqueued_at timestamptz, OUT message_id uuid,
	OUT exchange text, OUT routing_key text, OUT ordering_key text,
	OUT deliver_at timestamptz, OUT content_type text, OUT properties jsonb,
	OUT headers jsonb, OUT payload bytea, OUT segment integer, OUT pending boolean)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'outbox_stored_messages' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.stored_messages() IS 'the rows of all segments; keeps no lock on them';

CREATE VIEW outbox.unavailable AS
SELECT reason, exchange, CASE WHEN reason = 'stalled' THEN routing_key END AS routing_key,
	count(*) AS messages, min(enqueued_at) AS oldest,
	(array_agg(last_error ORDER BY place) FILTER (WHERE last_error IS NOT NULL))[1] AS last_error
FROM outbox.deferred WHERE reason = 'exchange' OR reason = 'stalled'	-- each has an index
GROUP BY 1, 2, 3;
COMMENT ON VIEW outbox.unavailable IS 'destinations that take no messages at the moment, and how many wait for each';

-- Backlog and counts are taken from tables, so they are right whatever became of
-- the worker; what it alone knows comes from shared memory.
CREATE VIEW outbox.status AS
SELECT w.database, w.worker_pid, w.state, w.broker, w.connected_since,
	b.pending, clock_timestamp() - b.oldest AS oldest_pending_age,
	w.in_flight, w.confirmed, w.returned, w.nacked,
	(SELECT count(*) FROM outbox.deferred) AS deferred,
	(SELECT count(*) FROM outbox.unavailable) AS unavailable,
	(SELECT count(*) FROM outbox.dead_letter) AS dead,
	(SELECT count(*) FROM outbox.held) AS held,
	w.reconnects, w.last_error, w.last_error_at
FROM outbox.worker_status() w, outbox.backlog() b;
COMMENT ON VIEW outbox.status IS 'one row: how the outbox of this database is doing';

CREATE VIEW outbox.message AS
SELECT s.id, s.message_id,
	CASE WHEN s.pending THEN 'pending'
		WHEN EXISTS (SELECT 1 FROM outbox.deferred d WHERE d.id = s.id) THEN 'deferred'
		WHEN EXISTS (SELECT 1 FROM outbox.dead_letter l WHERE l.id = s.id
			AND l.message_id = s.message_id) THEN 'dead'
		ELSE 'confirmed' END AS state,
	s.enqueued_at, s.exchange, s.routing_key, s.ordering_key, s.deliver_at,
	s.content_type, s.properties, s.headers, s.payload, s.xid, s.segment
FROM outbox.stored_messages() s;
COMMENT ON VIEW outbox.message IS 'every message still stored, with its state; confirmed ones go when their segment is emptied';

CREATE FUNCTION outbox.pause() RETURNS void AS 'MODULE_PATHNAME', 'outbox_pause' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.pause() IS 'publish nothing in this database until outbox.resume(); enqueue() goes on';
CREATE FUNCTION outbox.resume() RETURNS void AS 'MODULE_PATHNAME', 'outbox_resume' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.resume() IS 'undo outbox.pause()';
CREATE FUNCTION outbox.reload() RETURNS void AS 'MODULE_PATHNAME', 'outbox_reload' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.reload() IS 'restart the worker of this database, so that settings made by ALTER DATABASE take effect';

CREATE FUNCTION outbox.release_held() RETURNS bigint LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
	WITH gone AS (DELETE FROM outbox.held RETURNING *)
	SELECT count(outbox.enqueue(g.exchange, g.routing_key, g.payload, g.headers,
		g.ordering_key, g.deliver_at, g.message_id,
		coalesce(g.properties, '{}') || jsonb_build_object('content_type', g.content_type)))
	FROM (SELECT * FROM gone ORDER BY number) g
$$;
COMMENT ON FUNCTION outbox.release_held() IS 'enqueue what is in outbox.held, each message with the message_id it had; returns how many';

CREATE FUNCTION outbox.skip_to_now() RETURNS void AS 'MODULE_PATHNAME', 'outbox_skip_to_now' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.skip_to_now() IS 'part of outbox.adopt(): record everything committed so far as settled';

-- The lock waits for transactions that have enqueued and keeps out new ones, so that
-- nothing commits between reading what is pending and recording it as settled.
CREATE FUNCTION outbox.adopt() RETURNS bigint LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	moved bigint;
BEGIN
	LOCK TABLE outbox.message_0, outbox.message_1, outbox.message_2, outbox.message_3
		IN EXCLUSIVE MODE;
	-- behind the lock: somebody else may have adopted it meanwhile
	IF (SELECT c.database FROM outbox.control c)
		= (SELECT oid FROM pg_database WHERE datname = current_database())
	THEN
		RAISE EXCEPTION 'the outbox of this database is its own already'
			USING ERRCODE = 'object_not_in_prerequisite_state';
	END IF;
	WITH pending AS (
		SELECT id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key,
			deliver_at, content_type, properties, headers, payload
		FROM outbox.stored_messages() s
		-- what this very transaction has enqueued is not the original's
		WHERE s.pending AND s.xid <> pg_current_xact_id()
	), deferred AS (
		DELETE FROM outbox.deferred
		RETURNING id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key,
			deliver_at, content_type, properties, headers, payload
	)
	INSERT INTO outbox.held (id, xid, enqueued_at, message_id, exchange, routing_key,
		ordering_key, deliver_at, content_type, properties, headers, payload)
	SELECT * FROM (TABLE pending UNION ALL TABLE deferred) m ORDER BY m.id;
	GET DIAGNOSTICS moved = ROW_COUNT;
	PERFORM outbox.skip_to_now();
	UPDATE outbox.control SET database =
		(SELECT oid FROM pg_database WHERE datname = current_database());
	RETURN moved;
END
$$;
COMMENT ON FUNCTION outbox.adopt() IS 'in a copy of a database: move the messages of the original to outbox.held and begin publishing; returns how many';

CREATE FUNCTION outbox.announce() RETURNS void AS 'MODULE_PATHNAME', 'outbox_announce' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION outbox.announce() IS 'tell the launcher, at commit, that this database has the extension';

--
-- dump: what is pending or deferred goes along as rows of held, so that a restored
-- copy has it and publishes none of it by itself.  Their numbers lie below those in use.
--

SELECT pg_catalog.pg_extension_config_dump('outbox.dead_letter', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.held_number_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.held', $$
UNION ALL
SELECT m.id, m.xid, m.enqueued_at, m.message_id, m.exchange, m.routing_key, m.ordering_key,
	m.deliver_at, m.content_type, m.properties, m.headers, m.payload, pg_catalog.now(),
	(SELECT LEAST(pg_catalog.min(h.number), 1) FROM outbox.held h)
		OPERATOR(pg_catalog.-) pg_catalog.row_number() OVER (ORDER BY m.id DESC)
FROM (SELECT s.id, s.xid, s.enqueued_at, s.message_id, s.exchange, s.routing_key, s.ordering_key,
		s.deliver_at, s.content_type, s.properties, s.headers, s.payload
	FROM outbox.stored_messages() s WHERE s.pending
	UNION ALL
	SELECT d.id, d.xid, d.enqueued_at, d.message_id, d.exchange, d.routing_key, d.ordering_key,
		d.deliver_at, d.content_type, d.properties, d.headers, d.payload
	FROM outbox.deferred d) m
$$);

--
-- privileges: nothing for PUBLIC; producers get USAGE on the schema and EXECUTE on enqueue()
--

REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
GRANT USAGE ON SCHEMA outbox TO pg_monitor;
GRANT SELECT ON outbox.status, outbox.unavailable TO pg_monitor;
-- but not what is in the messages: payload, headers, properties
GRANT SELECT (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, deliver_at, content_type,
	reason, due_at, attempts, last_error, place) ON outbox.deferred TO pg_monitor;
GRANT SELECT (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, deliver_at, content_type,
	attempts, last_error, died_at) ON outbox.dead_letter TO pg_monitor;
GRANT SELECT (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, deliver_at, content_type,
	held_at, number) ON outbox.held TO pg_monitor;
GRANT EXECUTE ON FUNCTION outbox.worker_status(), outbox.backlog() TO pg_monitor;
-- backlog() asks where the sequence is
GRANT SELECT ON SEQUENCE outbox.message_id_seq TO pg_monitor;
-- whoever may read all tables: else the dump of a whole database would fail at ours
GRANT EXECUTE ON FUNCTION outbox.worker_status(), outbox.backlog(), outbox.stored_messages() TO pg_read_all_data;

SELECT outbox.announce();
