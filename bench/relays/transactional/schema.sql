-- The table is the package's (schema.js).  Payloads are JSON there; bytes go through it
-- as base64.  What may go in parallel leaves in no certain order.

CREATE FUNCTION transactional.relay_enqueue(routing_key text, payloads bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO transactional.outbox
		(id, aggregate_type, aggregate_id, message_type, concurrency, payload, metadata)
	SELECT gen_random_uuid(), 'bench', '1', 'message', 'parallel',
		to_jsonb(translate(encode(p, 'base64'), E'\n', '')), jsonb_build_object('routing_key', $1)
	FROM unnest($2) p;
END;
$$;

CREATE FUNCTION transactional.relay_enqueue_many(count int, routing_key text, payload bytea) RETURNS void
LANGUAGE sql AS $$
INSERT INTO transactional.outbox
	(id, aggregate_type, aggregate_id, message_type, concurrency, payload, metadata)
SELECT gen_random_uuid(), 'bench', '1', 'message', 'parallel',
	to_jsonb(translate(encode($3, 'base64'), E'\n', '')), jsonb_build_object('routing_key', $2)
FROM generate_series(1, $1)
$$;

CREATE FUNCTION transactional.relay_pending() RETURNS bigint
LANGUAGE sql AS 'SELECT count(*) FROM transactional.outbox WHERE processed_at IS NULL';
