# Proves that messages with the same ordering_key arrive in order even if one of
# them has to be retried, also across a restart of the server; that other keys and
# messages without a key are not held up by it; and that those behind move on when
# an operator deletes the message in front.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;

# One queue, so that there is one order of arrival.  Messages to "late.*" have no
# queue until it is bound to them too.
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
$broker->amqp('declare-exchange', 'shop', 'topic');
$broker->amqp('bind', 'orders', 'shop', 'order.*');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '400ms'
outbox.max_attempts = 1000000
outbox.in_flight_per_key = 1
outbox.poll_interval = '1s'
END
my $consumer = $broker->start_consumer('orders');

# Messages as [routing key, ordering key, body], in one transaction.
sub enqueue
{
	my @messages = @_;

	$node->safe_psql('postgres', join "\n", 'BEGIN;', (
			map {
				my ($routing_key, $key, $body) = @$_;
				$key = defined $key ? "'$key'" : 'NULL';
				"SELECT outbox.enqueue('shop', '$routing_key', '$body'::text, ordering_key => $key);"
			} @messages),
		'COMMIT;');
	return;
}

# Bodies that arrived and match, in order.
sub arrived
{
	my ($match) = @_;

	return join ' ', grep { $_ =~ $match } map { $_->{body} } $consumer->received;
}

sub wait_arrived
{
	my ($match, $count, $timeout) = @_;

	return wait_until("$count messages that match $match",
		sub { $count <= (() = grep { $_->{body} =~ $match } $consumer->received) },
		$timeout // 20);
}

#
# fifty keys, twenty messages each
#
sub keys_in_order
{
	my ($prefix, $keys, $each, $name) = @_;
	my (%last, %seen, @wrong);

	for my $message ($consumer->received)
	{
		my ($key, $n) = $message->{body} =~ /^$prefix(\d+)\.(\d+)$/ or next;

		next if $seen{"$key.$n"}++;
		push @wrong, "$prefix$key.$n after $last{$key}" if $n < ($last{$key} // 0);
		$last{$key} = $n;
	}
	is(scalar keys %seen, $keys * $each, "$name: all arrive");
	is_deeply(\@wrong, [], "$name: each key in order");
	return \%seen;
}

$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('shop', 'order.x', format('many%s.%s', k, n), ordering_key => 'many' || k)
FROM generate_series(1, 20) n, generate_series(1, 50) k ORDER BY n, k
END
wait_arrived(qr/^many/, 1000, 30);
$node->wait_drained;
my $seen = keys_in_order('many', 50, 20, '50 keys');
is((grep { $_ > 1 } values %$seen), 0, '50 keys: each once');

# ... with a restart before the last of them has arrived
$node->safe_psql('postgres', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('shop', 'order.x', format('more%s.%s', k, n), ordering_key => 'more' || k)
FROM generate_series(1, 200) n, generate_series(1, 50) k ORDER BY n, k
END
$node->safe_psql('postgres', 'SELECT outbox.resume()');
$consumer->wait_distinct(1000 + 200, 20);
$node->restart;
my $before = () = arrived(qr/^more/) =~ /\S+/g;
cmp_ok($before, '<', 50 * 200, 'restart in mid-stream');
diag "restart after $before of 10000 messages";
wait_arrived(qr/^more\d+\.200$/, 50, 30);
$node->wait_drained(timeout => 30);
keys_in_order('more', 50, 200, 'restart in mid-stream');

#
# a message that fails holds up its key, and nobody else
#
enqueue(
	[ 'order.x', 'a', 'a1' ],
	[ 'late.x', 'a', 'a2' ],
	[ 'order.x', 'a', 'a3' ],
	[ 'order.x', 'b', 'b1' ],
	[ 'order.x', undef, 'none1' ],
	[ 'order.x', 'a', 'a4' ],
	[ 'order.x', 'b', 'b2' ]);
enqueue([ 'order.x', undef, 'none2' ], [ 'order.x', 'a', 'a5' ], [ 'order.x', 'b', 'b3' ]);
wait_arrived(qr/^(b\d|none\d|a1)$/, 6);
$node->wait_for('a2 to be tried a few times and the others to wait behind it',
	q{SELECT string_agg(convert_from(payload, 'UTF8') || ' ' || reason ||
			CASE WHEN due_at = 'infinity' THEN ' (not due)' ELSE '' END, ', ' ORDER BY place)
		FROM outbox.deferred WHERE ordering_key = 'a'
		HAVING max(attempts) >= 3},
	expected => 'a2 retry, a3 behind (not due), a4 behind (not due), a5 behind (not due)',
	timeout => 20);
# Whether b2, which waits for b1 to be confirmed, or none2 is first, nobody promises.
is(arrived(qr/^a\d$/), 'a1', 'those of the key wait');
is(arrived(qr/^b\d$/), 'b1 b2 b3', 'those of another pass');
is(arrived(qr/^none\d$/), 'none1 none2', 'and those of none');

# what comes later waits too, also after a restart
enqueue([ 'order.x', 'a', 'a6' ], [ 'order.x', 'b', 'b4' ]);
wait_arrived(qr/^b4$/, 1);
$node->restart;
$node->wait_connected;
enqueue([ 'order.x', 'a', 'a7' ], [ 'late.x', 'a', 'a8' ], [ 'order.x', 'a', 'a9' ],
	[ 'order.x', 'b', 'b5' ]);
wait_arrived(qr/^b5$/, 1);
$node->wait_for('a3 to a9 to wait',
	q{SELECT count(*) = 7 FROM outbox.deferred WHERE ordering_key = 'a' AND reason = 'behind'},
	timeout => 20);
is(arrived(qr/^a\d$/), 'a1', 'after a restart the key still waits');

$broker->amqp('bind', 'orders', 'shop', 'late.x');
wait_arrived(qr/^a9$/, 1);
$node->wait_drained(timeout => 20);
is(arrived(qr/^a\d$/), 'a1 a2 a3 a4 a5 a6 a7 a8 a9', 'and then arrives in order, each once');
enqueue(map { [ 'order.x', 'a', "again$_" ] } 1 .. 5);
wait_arrived(qr/^again/, 5, 10);
is(arrived(qr/^again/), join(' ', map { "again$_" } 1 .. 5), 'the key is free again');

#
# twenty keys that fail at their third message, and a restart while they do
#
$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('shop', CASE n WHEN 3 THEN 'late.y' ELSE 'order.x' END,
	format('fail%s.%s', k, n), ordering_key => 'fail' || k)
FROM generate_series(1, 10) n, generate_series(1, 20) k ORDER BY n, k
END
wait_arrived(qr/^fail\d+\.2$/, 20);
$node->stop('immediate');
$node->start;
$node->wait_for('all twenty keys to wait for their third message',
	q{SELECT count(*) FILTER (WHERE reason = 'retry') = 20 AND
			count(*) FILTER (WHERE reason = 'behind') = 140 FROM outbox.deferred},
	timeout => 20);
ok(!arrived(qr/^fail\d+\.([3-9]|10)$/), 'crash: nothing has overtaken the message that fails');
$broker->amqp('bind', 'orders', 'shop', 'late.y');
wait_arrived(qr/^fail\d+\.10$/, 20, 30);
$node->wait_drained(timeout => 20);
keys_in_order('fail', 20, 10, 'crash');

#
# somebody deletes the message in front
#
sub wait_stuck
{
	my ($key) = @_;

	return $node->wait_for("key $key to wait",
		"SELECT count(*) FILTER (WHERE reason = 'behind') = 3 AND count(*) = 4
			FROM outbox.deferred WHERE ordering_key = '$key'",
		timeout => 20);
}

for my $key ('gone1' .. 'gone3')
{
	enqueue([ 'late.z', $key, "$key.1" ], map { [ 'order.x', $key, "$key.$_" ] } 2 .. 4);
	wait_stuck($key);
	$node->safe_psql('postgres',
		"DELETE FROM outbox.deferred WHERE ordering_key = '$key' AND reason = 'retry'");
	ok( eval { wait_arrived(qr/^$key/, 3, 8); 1 },
		"$key: those behind a deleted message are delivered")
	  or diag $node->safe_psql('postgres',
		"SELECT convert_from(payload, 'UTF8'), reason, due_at, attempts FROM outbox.deferred");
	is(arrived(qr/^$key/), "$key.2 $key.3 $key.4", "$key: in order");
}

done_testing();
