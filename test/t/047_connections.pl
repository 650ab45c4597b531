# Proves that with outbox.connections above 1 messages go over so many connections, and
# that those with the same ordering_key arrive in order all the same, none lost, also
# when one of the connections, the worker, or the server is killed under load; that a
# change of the setting is followed; and that an exchange which is missing for messages
# of one connection costs the others nothing.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders ghosts);

# With many of a key in flight at once nothing but the connection keeps their order.
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.connections = 4
outbox.in_flight_per_key = 50
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '500ms'
END
my $orders = $broker->start_consumer('orders');

$node->safe_psql('postgres', <<'END');
CREATE TABLE sent (id uuid PRIMARY KEY, key text, queue text);
CREATE FUNCTION send(key text, count integer, exchange text DEFAULT '', queue text DEFAULT 'orders')
RETURNS void LANGUAGE sql AS $$
	INSERT INTO sent (id, key, queue)
	SELECT outbox.enqueue(exchange, queue, 'order'::text, ordering_key => key), key, queue
	FROM generate_series(1, count)
$$;
END

# Twenty keys, each of one client, so that its messages commit in the order of their ids.
my $script = $broker->dir . '/load.sql';
open my $out, '>', $script or die "$script: $!";
print $out <<'END';
\set key random(1, 5)
SELECT send(:client_id || '.' || :key, 10), send(NULL, 5);
END
close $out or die "$script: $!";

sub start_load
{
	return Outbox::Process->start(
		name => 'pgbench',
		log => $broker->dir . '/load.log',
		command => [
			'pgbench', '-h', $node->host, '-p', $node->port, '-n', '-c', 4,
			'-R', 100, '-T', 600, '-f', $script, 'postgres'
		]);
}

# An Erlang expression for each of our connections C, of name N, with what else is asked of it.
sub each_connection
{
	my ($expression, $items, $values) = @_;

	return $broker->eval_erlang("[$expression || C <- rabbit_networking:connections(), "
		  . "[{client_properties, P}$values] <- "
		  . "[catch rabbit_networking:connection_info(C, [client_properties$items])], "
		  . 'is_list(P), {<<"connection_name">>, longstr, N} <- P]');
}

# What the broker knows of them: hashes with name, pid and received (bytes).
sub connections
{
	my $text = each_connection('{binary_to_atom(N, utf8), list_to_atom(pid_to_list(C)), R}',
		', recv_oct', ', {recv_oct, R}');
	my @connections;

	while ($text =~ /\{'?(outbox[^',]*)'?,\s*'?([^',]*)'?,\s*(\d+)\}/g)
	{
		push @connections, { name => $1, pid => $2, received => $3 };
	}
	return sort { $a->{name} cmp $b->{name} } @connections;
}

sub names
{
	return join ', ', map { $_->{name} } connections();
}

sub wait_connections
{
	my ($count) = @_;
	my $expected = join ', ', 'outbox/postgres', map { "outbox/postgres $_" } 2 .. $count;

	ok(eval { wait_until("$count connections", sub { names() eq $expected }, 20) },
		"connections: $expected")
	  or diag 'there are: ' . names();
	$node->wait_connected;
	return connections();
}

# The broker ends the connection of that name, and no other.
sub end_connection
{
	my ($name, $act) = @_;

	each_connection(qq([$act || N =:= <<"$name">>]), '', '');
	return;
}

# Messages flow: so many more have arrived.
sub wait_flow
{
	my ($count) = @_;

	$orders->wait_distinct($orders->distinct + ($count // 500), 30);
	return;
}

# Lines of the server's log that match.
sub logged
{
	my ($pattern) = @_;

	open my $in, '<', $node->logfile or die $node->logfile . ": $!";
	my @lines = grep { $_ =~ $pattern } <$in>;
	close $in;
	return scalar @lines;
}

# All that was sent to a queue has arrived, that of each ordering key in order.
sub complete
{
	my ($name, $consumer, $queue) = @_;
	my (%key, %last, %seen, @wrong);

	$node->wait_drained;
	for my $line (split /\n/,
		$node->safe_psql('postgres', "SELECT id, key FROM sent WHERE queue = '$queue'"))
	{
		my ($id, $key) = split /\|/, $line, 2;
		$key{$id} = $key;
	}
	eval { $consumer->wait_distinct(scalar keys %key, 20) };
	for my $message ($consumer->received)
	{
		my $key = $key{ $message->{message_id} };

		next if $seen{ $message->{message_id} }++ || !$key;
		push @wrong, "$key: $message->{id} after $last{$key}" if $message->{id} < ($last{$key} // 0);
		$last{$key} = $message->{id};
	}
	is(scalar(grep { !$seen{$_} } keys %key), 0, "$name: nothing is lost");
	is_deeply(\@wrong, [], "$name: each key in order");
	diag sprintf '%s: %d messages, %d arrivals', $name, scalar keys %key,
	  scalar(my @all = $consumer->received);
	return;
}

#
# four connections
#
my @before = wait_connections(4);
my $load = start_load();
wait_flow(3000);
is(scalar(grep { $_->{received} > 50_000 } connections()), 4, 'messages go over each of them');
is(logged(qr/outbox: connected to RabbitMQ/), 1, 'the log has one line for all');

#
# one of them is lost
#
for my $loss (
	[ 'outbox/postgres 3', 'rabbit_networking:close_connection(C, "test")', 'closed by an operator' ],
	[ 'outbox/postgres 2', 'exit(C, kill)', 'cut' ],
	[ 'outbox/postgres', 'exit(C, kill)', 'cut, the first' ])
{
	my ($name, $act, $what) = @$loss;
	my %old = map { $_->{pid} => 1 } @before;
	my $reconnects = $node->status('reconnects');

	wait_flow();
	end_connection($name, $act);
	wait_until(
		'other connections',
		sub { my @all = connections(); @all == 4 && !grep { $old{ $_->{pid} } } @all }, 20);
	@before = wait_connections(4);
	wait_flow();
	is($node->status('reconnects'), $reconnects + 1, "$what: all are made anew, once");
}
is(logged(qr/LOG: .*RabbitMQ at .* closed the connection: .*\(320\)/), 1,
	'closed by an operator: once in the log');
is(logged(qr/LOG: .*lost the connection to RabbitMQ/), 2, 'cut: likewise, each');

#
# worker and server
#
my $pid = $node->worker_pid;
kill 'KILL', $pid;
$node->wait_for('another worker', "SELECT worker_pid <> $pid FROM outbox.status");
$load->stop;
$load = start_load();
wait_flow();
$node->kill9;
$node->start;
$load->stop;
$load = start_load();
wait_connections(4);
wait_flow();

#
# other numbers
#
for my $count (1, 2)
{
	$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.connections = $count");
	$node->reload;
	wait_connections($count);
	wait_flow();
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET outbox.connections');
$node->reload;
wait_connections(4);
wait_flow();

#
# an alarm of the broker
#
$broker->set_memory_alarm;
$node->wait_for('the broker to block', "SELECT state = 'blocked' FROM outbox.status");
$broker->clear_memory_alarm;
wait_flow(3000);
is(logged(qr/LOG: .*has blocked publishing/), 1, 'an alarm: once in the log');
is(logged(qr/LOG: .*allows publishing again/), 1, 'and its end');

#
# an exchange that is missing
#
# While one channel is closed the others have many in flight, some of keys of theirs.
my $connected = $node->status('connected_since');
my $crowd = "count(send(k, 20)) FROM unnest(array_fill(NULL::text, ARRAY[100]) || ARRAY['a', 'b', 'c', 'd', 'e']) k";
my $set_aside = 0;
for my $ghosts ([ "'haunted'", 'over one connection' ], [ 'NULL', 'over all of them' ])
{
	my ($key, $what) = @$ghosts;

	$node->safe_psql('postgres',
		"BEGIN; SELECT $crowd; SELECT send($key, 200, 'ghost', 'ghosts'); SELECT $crowd; COMMIT");
	$set_aside += 200;
	$node->wait_for('its messages to be set aside',
		"SELECT deferred = $set_aside AND unavailable = 1 FROM outbox.status");
	wait_flow(3000);
	is($node->status('connected_since'), $connected,
		"a missing exchange, its messages $what: no connection is lost");
}
is($node->value(q{SELECT count(*) FROM outbox.deferred WHERE exchange <> 'ghost'}),
	0, 'nothing else is set aside');
$broker->amqp('declare-exchange', 'ghosts', 'fanout');
$broker->amqp('bind', 'ghosts', 'ghosts', '');
$broker->amqp('declare-exchange', 'ghost', 'topic', 'alternate-exchange=ghosts');
$load->stop;
my $ghosts = $broker->start_consumer('ghosts');
complete('a missing exchange', $ghosts, 'ghosts');
complete('load', $orders, 'orders');
is($node->status('dead'), 0, 'none was given up');

$_->stop for $orders, $ghosts, $node;
done_testing();
