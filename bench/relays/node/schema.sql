CREATE SCHEMA node;

CREATE TABLE node.outbox (
	id bigserial PRIMARY KEY,
	message_id uuid NOT NULL DEFAULT gen_random_uuid(),
	routing_key text NOT NULL,
	payload bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now()
);

-- PL/pgSQL keeps the plan of its INSERT, a function in SQL makes it anew in each call.
CREATE FUNCTION node.relay_enqueue(routing_key text, payloads bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO node.outbox (routing_key, payload) SELECT $1, unnest($2);
END;
$$;

CREATE FUNCTION node.relay_enqueue_many(count int, routing_key text, payload bytea) RETURNS void
LANGUAGE sql AS 'INSERT INTO node.outbox (routing_key, payload) SELECT $2, $3 FROM generate_series(1, $1)';

CREATE FUNCTION node.relay_pending() RETURNS bigint
LANGUAGE sql AS 'SELECT count(*) FROM node.outbox';
