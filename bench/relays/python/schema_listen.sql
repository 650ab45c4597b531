CREATE FUNCTION python.notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NOTIFY python_outbox;
	RETURN NULL;
END;
$$;

CREATE TRIGGER notify AFTER INSERT ON python.outbox FOR EACH STATEMENT EXECUTE FUNCTION python.notify();
