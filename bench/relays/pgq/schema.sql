-- psql variables: window, poll_ms

CREATE EXTENSION pgq;

-- PgQ has a schema pgq of its own, to which these two functions are added.  Event data
-- are text; bytes go through it as base64, the message's id is ev_extra1.

SELECT pgq.create_queue('bench') \g /dev/null
SELECT pgq.set_queue_config('bench', 'ticker_max_count', :'window') \g /dev/null
SELECT pgq.set_queue_config('bench', 'ticker_max_lag', :'poll_ms' || ' ms') \g /dev/null
SELECT pgq.register_consumer('bench', 'relay') \g /dev/null

CREATE FUNCTION pgq.relay_enqueue(routing_key text, payloads bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pgq.insert_event('bench', $1, translate(encode(payload, 'base64'), E'\n', ''),
		gen_random_uuid()::text, NULL, NULL, NULL) FROM unnest($2) payload;
END;
$$;

CREATE FUNCTION pgq.relay_enqueue_many(count int, routing_key text, payload bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pgq.insert_event('bench', $2, translate(encode($3, 'base64'), E'\n', ''),
		gen_random_uuid()::text, NULL, NULL, NULL) FROM generate_series(1, $1);
END;
$$;

-- Events since the last tick that the consumer has finished; pgq.get_consumer_info()
-- does not see those which await their tick.
CREATE FUNCTION pgq.relay_pending() RETURNS bigint LANGUAGE sql AS $$
SELECT pgq.seq_getval(q.queue_event_seq) - t.tick_event_seq + (
		SELECT count(*) FROM pgq.retry_queue)
FROM pgq.queue q
	JOIN pgq.subscription s ON s.sub_queue = q.queue_id
	JOIN pgq.tick t ON t.tick_queue = q.queue_id AND t.tick_id = s.sub_last_tick
WHERE q.queue_name = 'bench'
$$;
