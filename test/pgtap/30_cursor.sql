-- What is read next, given the progress on record.  The worker records none without a broker,
-- so this writes it: horizons as src/cursor.c defines them, by hand.
TRUNCATE outbox.message_0, outbox.message_1, outbox.message_2, outbox.message_3, outbox.progress_0, outbox.progress_1;

-- four transactions, three messages each; those of the third are rolled back
SELECT pg_current_xact_id() AS x1, count(outbox.enqueue('ex', '1', 'x')) FROM generate_series(1, 3) \gset
SELECT max(id) AS l1, min(enqueued_at) AS first_at FROM outbox.message \gset
SELECT pg_current_xact_id() AS x2, count(outbox.enqueue('ex', '2', 'x')) FROM generate_series(1, 3) \gset
SELECT max(id) AS l2 FROM outbox.message \gset
BEGIN;
SELECT pg_current_xact_id() AS x3, count(outbox.enqueue('ex', '3', 'x')) FROM generate_series(1, 3) \gset
ROLLBACK;
SELECT pg_current_xact_id() AS x4, count(outbox.enqueue('ex', '4', 'x')) FROM generate_series(1, 3) \gset
SELECT max(id) AS l4 FROM outbox.message \gset
SELECT min(enqueued_at) AS fourth_at FROM outbox.message WHERE routing_key = '4' \gset
SELECT pg_current_xact_id() AS x5 \gset

-- progress beyond what the sequence gives: it was set back (setval, a restore)
INSERT INTO outbox.progress_0 SELECT 1, now(), 1000000, :'x5'::xid8, format('%s:%s:', :x5, :x5)::pg_snapshot;
SELECT outbox.enqueue('ex', 'set back', 'x') IS NOT NULL AS ok \gset
SELECT pending AS set_back FROM outbox.backlog() \gset
TRUNCATE outbox.progress_0, outbox.progress_1;
-- own messages
SELECT pending AS before FROM outbox.backlog() \gset
BEGIN;
SELECT outbox.enqueue('ex', 'own', 'x') IS NOT NULL AS ok \gset
SELECT pending AS within FROM outbox.backlog() \gset
ROLLBACK;
SELECT pending AS after FROM outbox.backlog() \gset
DELETE FROM outbox.message_0 WHERE routing_key = 'set back';

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(47);

SELECT is(:set_back, 1, 'a sequence that was set back loses nothing');
SELECT is(:within, :before, 'what is not committed is not pending, not even to its own transaction');
SELECT is(:after, :before, 'nor what was rolled back');
SELECT is(:before, 10, 'but what is committed');

CREATE FUNCTION pg_temp.record(last_id bigint, next_xid bigint, snapshot text, window_last_id bigint DEFAULT NULL,
	window_next_xid bigint DEFAULT NULL, window_snapshot text DEFAULT NULL, upper_id bigint DEFAULT NULL,
	settled_id bigint DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
	INSERT INTO outbox.progress_0 SELECT coalesce(max(number), 0) + 1, now(), last_id, next_xid::text::xid8, snapshot::pg_snapshot,
		window_last_id, window_next_xid::text::xid8, window_snapshot::pg_snapshot, upper_id, settled_id
		FROM (SELECT number FROM outbox.progress_0 UNION ALL SELECT number FROM outbox.progress_1) p $$;
-- the transactions that outbox.message says are pending, which must be as many as the cursor finds
CREATE FUNCTION pg_temp.reads(expected text, description text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	RETURN NEXT is((SELECT coalesce(string_agg(routing_key, ' ' ORDER BY id), '') FROM outbox.message WHERE state = 'pending'),
		expected, description);
	RETURN NEXT is((SELECT pending FROM outbox.backlog()),
		cardinality(string_to_array(expected, ' '))::bigint, description || ': backlog() finds as many');
END $$;

SELECT pg_temp.reads('1 1 1 2 2 2 4 4 4', 'nothing on record: all that is committed');
SELECT is(oldest, :'first_at'::timestamptz, 'the oldest is the first') FROM outbox.backlog();
SELECT ok(oldest_pending_age BETWEEN clock_timestamp() - :'first_at' - interval '1s' AND clock_timestamp() - :'first_at',
	'and outbox.status tells its age') FROM outbox.status;

SELECT pg_temp.record(:l1, :x2, format('%s:%s:', :x2, :x2)) \gset ignored_
SELECT pg_temp.reads('2 2 2 4 4 4', 'settled up to the first transaction');
SELECT pg_temp.record(:l2, :x3, format('%s:%s:', :x3, :x3)) \gset ignored_
SELECT pg_temp.reads('4 4 4', 'settled up to the second');
SELECT is(oldest, :'fourth_at'::timestamptz, 'now the oldest is of the fourth') FROM outbox.backlog();
SELECT pg_temp.record(:l4, :x5, format('%s:%s:', :x5, :x5)) \gset ignored_
SELECT pg_temp.reads('', 'all is settled');
SELECT is(oldest, NULL, 'no oldest then') FROM outbox.backlog();
SELECT is(oldest_pending_age, NULL, 'and no age') FROM outbox.status;

-- late ones, with ids below those that are settled
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s', :x1, :x5, :x1)) \gset ignored_
SELECT pg_temp.reads('1 1 1', 'late: the oldest xid in the snapshot');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s,%s', :x1, :x5, :x1, :x4)) \gset ignored_
SELECT pg_temp.reads('1 1 1 4 4 4', 'late: two of them');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s', :x2, :x5, :x2)) \gset ignored_
SELECT pg_temp.reads('2 2 2', 'late: one in the middle');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s', :x3, :x5, :x3)) \gset ignored_
SELECT pg_temp.reads('', 'late: one that was rolled back');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:', :x4, :x4)) \gset ignored_
SELECT pg_temp.reads('4 4 4', 'late: assigned, not complete, and not listed (xmax to N)');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:', :x1, :x1)) \gset ignored_
SELECT pg_temp.reads('1 1 1 2 2 2 4 4 4', 'late: several of those');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s', :x1, :x2, :x1)) \gset ignored_
SELECT pg_temp.reads('1 1 1 2 2 2 4 4 4', 'late: of both kinds, none twice');
SELECT pg_temp.record(:l2, :x3, format('%s:%s:%s', :x1, :x2, :x1)) \gset ignored_
SELECT pg_temp.reads('1 1 1 2 2 2 4 4 4', 'late ones, and those that began later');

SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xmax \gset
SELECT pg_temp.record(:l4, :xmax, format('%s:%s:%s', :x1, :xmax, :x1)) \gset ignored_
SELECT pg_temp.reads('1 1 1', 'late: although xmax of the snapshot has not moved since');

-- in the middle of a window
SELECT pg_temp.record(:l1, :x2, format('%s:%s:', :x2, :x2), :l2, :x3, format('%s:%s:', :x3, :x3), :l2, :l2 - 1) \gset ignored_
SELECT pg_temp.reads('2 4 4 4', 'a window settled but for its last message');
SELECT pg_temp.record(:l1, :x2, format('%s:%s:', :x2, :x2), :l4, :x5, format('%s:%s:', :x5, :x5), :l4, :l4 - 2) \gset ignored_
SELECT pg_temp.reads('4 4', 'a window that reaches to now');
SELECT pg_temp.record(:l4, :x5, format('%s:%s:%s', :x1, :x5, :x1), :l4, :x5, format('%s:%s:', :x5, :x5), :l4, :l1 - 1) \gset ignored_
SELECT pg_temp.reads('1', 'a window of late ones, below ids that are settled');
-- a window of which only the first message is settled, and not the late one that it does not see
SELECT pg_temp.record(0, :x1, format('%s:%s:', :x1, :x1), :l4, :x5, format('%s:%s:%s', :x2, :x5, :x2), :l4, :l1) \gset ignored_
SELECT pg_temp.reads('2 2 2 4 4 4', 'an id up to the settled one counts only if the window sees it');

-- the newest of both tables counts
INSERT INTO outbox.progress_1 SELECT 1000, now(), :l4, :'x5'::xid8, format('%s:%s:', :x5, :x5)::pg_snapshot;
SELECT pg_temp.reads('', 'the highest number, in the other table');
INSERT INTO outbox.progress_0 SELECT 999, now(), 0, '3', '3:3:';
SELECT pg_temp.reads('', 'a lower one written later does not count');
SELECT * FROM finish();
ROLLBACK;

