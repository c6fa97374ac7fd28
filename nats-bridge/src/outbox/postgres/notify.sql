-- Wakes relays at each commit that inserts, instead of at their next look. PostgreSQL only: CockroachDB has no NOTIFY.
CREATE OR REPLACE FUNCTION nats_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('nats_outbox', '');
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS nats_outbox_inserted ON nats_outbox;
CREATE TRIGGER nats_outbox_inserted AFTER INSERT ON nats_outbox FOR EACH STATEMENT EXECUTE FUNCTION nats_outbox_notify();
