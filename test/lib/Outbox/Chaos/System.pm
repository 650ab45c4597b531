package Outbox::Chaos::System;

# What is disturbed: a server, a broker, a proxy between them, tables, exchanges,
# queues, writers and consumers.  Part of Outbox::Chaos.

use strict;
use warnings FATAL => 'all';

use Outbox::Broker;
use Outbox::Load;
use Outbox::Node;
use Outbox::Proxy;

sub _make_broker_objects
{
	my ($self) = @_;

	$self->{make} = {
		shop => [
			[ 'declare-exchange', 'shop', 'topic' ], [ 'bind', 'orders', 'shop', 'order.*' ]
		],
		market => [
			[ 'declare-exchange', 'market', 'topic' ], [ 'bind', 'orders', 'market', 'order.*' ]
		],
		# nobody counts what is in copies
		copies => [
			[ 'declare-queue', 'copies', 'classic', 'durable', 'x-max-length=1000' ],
			[ 'declare-exchange', 'mirror', 'fanout' ],
			[ 'bind', 'copies', 'mirror', '' ],
			[ 'bind', 'orders', 'mirror', '' ]
		],
		full => 'rabbit_policy:set(<<"/">>, <<"full">>, <<"^orders$">>, '
		  . '[{<<"max-length">>, 0}, {<<"overflow">>, <<"reject-publish">>}], '
		  . '1, <<"queues">>, <<"chaos">>)',
		not_full => 'rabbit_policy:delete(<<"/">>, <<"full">>, <<"chaos">>)',
	};
	$self->{queues} = [qw(orders side)];
	$self->_declare_all;
	return;
}

sub _declare_all
{
	my ($self) = @_;

	return $self->_amqp_until(
		(map { [ 'declare-queue', $_, 'classic', 'durable' ] } @{ $self->{queues} }),
		map { @{ $self->{make}{$_} } } qw(shop market copies));
}

# place_order() draws where a message goes, and whether it has an ordering key, by
# the numbers of the order and of its transaction.
#
# Whoever orders for a customer holds the customer's row: n is the place of the
# order among all of this customer that commit, and what its messages must arrive
# in order of.  The customers 8 to 11 order to the queue `side`, so the messages of
# one customer are all in one queue.
sub _make_tables
{
	my ($self) = @_;

	$self->{node}->safe_psql('postgres', <<"END");
CREATE TABLE customers (customer integer PRIMARY KEY, placed bigint NOT NULL DEFAULT 0);
INSERT INTO customers SELECT generate_series(0, 11);
CREATE SEQUENCE order_seq;
CREATE TABLE orders (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	seq bigint NOT NULL,
	customer integer,
	n bigint,
	exchange text NOT NULL,
	routing_key text NOT NULL,
	due_at timestamptz,
	placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION draw(what text, number bigint, faces bigint) RETURNS integer LANGUAGE sql AS \$\$
	SELECT (hashtextextended(what || number, $self->{seed}) % faces + faces)::integer % faces::integer
\$\$;
END
	$self->{node}->safe_psql('postgres', <<'SQL');
CREATE FUNCTION place(v_exchange text, v_routing_key text, v_customer integer,
	v_due_at timestamptz, v_size integer) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
	v_id uuid;
	v_n bigint;
	v_seq bigint := nextval('order_seq');
BEGIN
	UPDATE customers SET placed = placed + 1 WHERE customer = v_customer RETURNING placed INTO v_n;
	INSERT INTO orders (seq, customer, n, exchange, routing_key, due_at)
	VALUES (v_seq, v_customer, v_n, v_exchange, v_routing_key, v_due_at) RETURNING id INTO v_id;
	RETURN outbox.enqueue(v_exchange, v_routing_key,
		format('customer %s, %s; %s', v_customer, v_n, repeat('x', v_size)),
		ordering_key => 'customer ' || v_customer, deliver_at => v_due_at, message_id => v_id);
END
$$;
CREATE FUNCTION place_order(writer integer, ordered boolean DEFAULT true) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
	v_transaction bigint := pg_current_xact_id()::text::bigint;
	v_seq bigint := nextval('order_seq');
	v_customer integer;
	v_where integer := draw('where', v_seq, 10);
	v_due_at timestamptz;
BEGIN
	IF draw('commit', v_transaction, 4) = 0 THEN
		PERFORM set_config('synchronous_commit', 'off', true);
	END IF;
	IF ordered AND draw('key', v_transaction, 10) < 6 THEN
		v_customer := draw('customer', v_transaction, 12);
	ELSIF draw('due', v_seq, 30) = 0 THEN
		v_due_at := clock_timestamp() + draw('delay', v_seq, 3000) * interval '1 ms';
	END IF;
	RETURN place(
		CASE WHEN v_customer >= 8 OR v_where < 5 THEN ''
			WHEN v_where < 7 THEN 'shop' WHEN v_where < 9 THEN 'market' ELSE 'mirror' END,
		CASE WHEN v_customer >= 8 OR v_customer IS NULL AND v_where < 2 THEN 'side'
			WHEN v_where < 5 THEN 'orders' ELSE 'order.placed' END,
		v_customer, v_due_at,
		CASE WHEN draw('size', v_seq, 100) = 0 THEN 40000 ELSE 50 END);
END
$$;
CREATE FUNCTION place_order_for(queue text) RETURNS uuid LANGUAGE sql AS
	$$ SELECT place('', queue, NULL, NULL, 50) $$;
SQL
	return;
}

sub start
{
	my ($self) = @_;
	my $broker = $self->{broker} = Outbox::Broker->new;
	my $node;

	$broker->launch;    # takes its time; initdb meanwhile
	$self->{proxy} = Outbox::Proxy->new(target => $broker->port);
	$node = $self->{node} = Outbox::Node->create(
		'main',
		uri => $self->{proxy}->uri,
		conf => <<"END");
outbox.in_flight_messages = $self->{in_flight}
outbox.in_flight_per_key = 1
outbox.segment_size = '1MB'
outbox.heartbeat = '5s'
outbox.confirm_timeout = '5s'
outbox.connect_timeout = '2s'
outbox.poll_interval = '1s'
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '1s'
outbox.max_attempts = 1000000
log_line_prefix = '%m [%p] %b '
END
	$self->_make_tables;
	my $oid = $node->value(q{SELECT oid FROM pg_database WHERE datname = 'postgres'});
	$self->{worker_title} = qr/outbox worker for database $oid\b/;
	$broker->wait_ready;
	$self->_make_broker_objects;
	$self->{consumers} = { map { $_ => $broker->start_consumer($_) } qw(orders side) };
	$node->wait_connected;
	$self->{load} = Outbox::Load->new(node => $node, seed => $self->{seed}, pause_us => 10_000);
	$self->{load}->start;
	$self->_wait_flowing;
	return;
}

# What must have arrived: the table, after all recoveries.
sub _committed
{
	my ($self) = @_;
	my @orders;

	for my $line (split /\n/, $self->{node}->safe_psql('postgres', <<'END'))
SELECT id, customer, n, customer IS NOT NULL, exchange, routing_key,
	(extract(epoch FROM due_at) * 1000000)::bigint, placed_at
FROM orders
END
	{
		my %order;
		@order{qw(id writer seq ordered exchange routing_key due_at placed_at)} =
		  split /\|/, $line;
		push @orders, \%order;
	}
	return @orders;
}

1;
