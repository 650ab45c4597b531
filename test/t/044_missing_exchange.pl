# Proves that an exchange which is missing, or which the user may not write to, costs the
# others nothing: a great many messages for it, under many routing keys, are set aside as a
# whole; it is tried once per backoff, each of which closes a channel, but not that of the
# others, whose messages keep arriving; none is given up, also across a crash, and once the
# exchange can be used all are delivered, in order, each once.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $COUNT = $ENV{OUTBOX_TEST_COUNT} // 20_000;    # messages for each of the two exchanges
my $KEYS = 100;                                   # their routing keys
my $DELAY = 0.5;                                  # seconds between attempts, in the end

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders ghosts vaults);
$broker->amqp('declare-exchange', 'vault', 'fanout');
$broker->amqp('bind', 'vaults', 'vault', '');

# A user who may do all but write to the exchange "vault", unless it is permitted.
sub permit
{
	my ($write) = @_;

	$broker->eval_erlang('rabbit_auth_backend_internal:set_permissions('
		  . qq{<<"clerk">>, <<"/">>, <<".*">>, <<"$write">>, <<".*">>, <<"tests">>)});
	return;
}

$broker->eval_erlang(
	'rabbit_auth_backend_internal:add_user(<<"clerk">>, <<"secret">>, <<"tests">>)');
permit('^(?!vault$).*');

my $node = Outbox::Node->create(
	'main',
	uri => $broker->uri =~ s/guest:guest/clerk:secret/r,
	conf => <<"END");
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '${DELAY}s'
outbox.max_attempts = 3
END
$node->wait_connected;
my $orders = $broker->start_consumer('orders');

# How many channels the broker has closed on us so far.
sub closed_channels
{
	my $count = 0;

	for my $file (glob $broker->dir . '/log/*.log')
	{
		open my $in, '<', $file or die "$file: $!";
		$count += grep { /caused a channel exception|^operation .* caused a/ } <$in>;
		close $in;
	}
	return $count;
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

# Orders keep coming all the time, one per transaction.
$node->safe_psql('postgres', <<'END');
CREATE TABLE placed (id uuid PRIMARY KEY, number bigserial,
	at timestamptz NOT NULL DEFAULT clock_timestamp());
END
my $script = $broker->dir . '/orders.sql';
open my $out, '>', $script or die "$script: $!";
print $out "INSERT INTO placed (id) SELECT outbox.enqueue('', 'orders', 'order'::text);\n";
close $out or die "$script: $!";

sub start_orders
{
	return Outbox::Process->start(
		name => 'pgbench',
		log => $broker->dir . '/orders.log',
		command => [
			'pgbench', '-h', $node->host, '-p', $node->port, '-n', '-c', 1,
			'-R', 100, '-T', 600, '-f', $script, 'postgres'
		]);
}

# Every order up to now has arrived; returns the seconds it took those placed since.
sub wait_orders
{
	my ($since) = @_;
	my $last = $node->safe_psql('postgres', 'SELECT id FROM placed ORDER BY number DESC LIMIT 1');

	$orders->wait_message($last, 30);
	my @seconds = sort { $a <=> $b } map {
		my ($id, $at) = split /\|/;
		my $first = $orders->first($id);

		$first ? $first->{at} / 1e6 - $at : 1e9;
	  } split /\n/,
	  $node->safe_psql('postgres',
		"SELECT id, extract(epoch FROM at) FROM placed WHERE at > '$since' AND at < "
		  . "(SELECT at FROM placed WHERE id = '$last')");
	diag sprintf '%d orders meanwhile: median %.0f ms, 95 %% %.0f ms, longest %.0f ms',
	  scalar @seconds, map { 1000 * $seconds[ $_ * $#seconds ] } 0.5, 0.95, 1;
	return @seconds;
}

sub now { return $node->safe_psql('postgres', 'SELECT clock_timestamp()'); }

# Both exchanges, among some orders, in one transaction.
sub enqueue
{
	my ($exchange, $prefix, $count) = @_;

	$node->safe_psql('postgres', <<"END");
SELECT count(CASE WHEN i % 10 = 5 THEN outbox.enqueue('', 'orders', '$prefix'::text) END),
	count(outbox.enqueue('$exchange', 'key' || i % $KEYS, '$prefix' || i))
FROM generate_series(1, $count) i
END
	return;
}

sub wait_set_aside
{
	my ($exchange, $count) = @_;

	return $node->wait_for(
		"the messages for exchange $exchange to be set aside",
		"SELECT string_agg(format('%s/%s/%s', reason, routing_key, messages), ' ')
			FROM outbox.unavailable WHERE exchange = '$exchange'",
		expected => "exchange//$count", timeout => 60);
}

# While nothing changes: attempts, each of which closes a channel, and orders.
sub watch
{
	my ($name, $seconds, $exchanges) = @_;
	my $since = now();
	my $connected = $node->status('connected_since');
	my $before = closed_channels();
	my $start = time();

	$node->safe_psql('postgres', "SELECT pg_sleep($seconds)");
	my $closed = closed_channels() - $before;
	my $elapsed = time() - $start;
	my @seconds = wait_orders($since);
	diag sprintf '%s: %d channels closed in %.1f s', $name, $closed, $elapsed;
	cmp_ok($closed, '>=', 2, "$name: it is tried again and again");
	# the shortest delay is 0.8 times the nominal one
	cmp_ok($closed, '<=', $exchanges * ($elapsed / ($DELAY * 0.8) + 2), "$name: once per backoff");
	cmp_ok(scalar @seconds, '>', 100, "$name: orders keep coming");
	cmp_ok($seconds[ 0.95 * $#seconds ], '<', 0.5, "$name: and arrive at once");
	is($node->status('connected_since'), $connected, "$name: over the connection they had");
	return;
}

# Everything for an exchange, from its queue.
sub all_delivered
{
	my ($exchange, $queue, $count) = @_;
	my $consumer = $broker->start_consumer($queue);

	$consumer->wait_distinct($count, 60);
	$node->wait_drained(timeout => 60);
	$consumer->wait_quiet(0.5, 20);
	my @ids = map { $_->{id} } $consumer->received;
	is(scalar $consumer->distinct, $count, "$exchange: all are delivered");
	is(scalar @ids, $count, "$exchange: each once");
	is(scalar(grep { $ids[$_] < $ids[ $_ - 1 ] } 1 .. $#ids), 0, "$exchange: in order");
	$consumer->stop;
	return;
}

my $load = start_orders();
$orders->wait_distinct(100, 30);

#
# an exchange that is not there
#
my $since = now();
my $before = closed_channels();
my $start = time();
enqueue('ghost', 'ghost', $COUNT);
wait_set_aside('ghost', $COUNT);
my $closed = closed_channels() - $before;
diag sprintf '%d messages set aside after %.1f s, %d channels closed', $COUNT, time() - $start, $closed;
cmp_ok($closed, '<=', 5 + (time() - $start) / ($DELAY * 0.8),
	'however many messages there are for a missing exchange, few channels are closed');
wait_orders($since);
is($node->value(q{SELECT count(*) FROM outbox.deferred WHERE exchange <> 'ghost'}),
	0, 'nothing else is set aside');
like($node->value('SELECT last_error FROM outbox.unavailable'), qr/NOT_FOUND.*'ghost'/,
	"unavailable has the broker's words");
watch('missing', 4, 1);

#
# an exchange that this user may not write to
#
enqueue('vault', 'vault', $COUNT);
wait_set_aside('vault', $COUNT);
like($node->value(q{SELECT last_error FROM outbox.unavailable WHERE exchange = 'vault'}),
	qr/ACCESS_REFUSED.*'vault'/, "forbidden: the broker's words");

#
# a crash
#
$load->stop;
my $pid = $node->worker_pid;
kill 'KILL', $pid;
$node->wait_for('another worker',
	"SELECT worker_pid <> $pid AND connected_since IS NOT NULL FROM outbox.status",
	timeout => 60);
$load = start_orders();
enqueue('ghost', 'later', 1000);
wait_set_aside('ghost', $COUNT + 1000);
wait_set_aside('vault', $COUNT);
is($node->status('dead'), 0, 'after a crash all wait as before, and none is given up');

# two exchanges, each with its own backoff
watch('both', 3, 2);

#
# and then they can be used
#

# Whatever comes to the exchange arrives in the queue from its first moment on.
$broker->amqp('declare-exchange', 'ghosts', 'fanout');
$broker->amqp('bind', 'ghosts', 'ghosts', '');
$since = now();
$start = time();
$broker->amqp('declare-exchange', 'ghost', 'topic', 'alternate-exchange=ghosts');
my $latest = 0;    # more come while those before them are on their way
wait_until(
	'the exchange to work',
	sub {
		enqueue('ghost', 'latest', 50);
		$latest += 50;
		return $node->value(
			q{SELECT count(*) = 0 FROM outbox.unavailable WHERE exchange = 'ghost'}) eq 't';
	},
	60 + $COUNT / 500,
	1);
diag sprintf '%d messages were delivered in %.1f s', $COUNT + 1000 + $latest, time() - $start;
wait_orders($since);
is($node->value(q{SELECT messages FROM outbox.unavailable WHERE exchange = 'vault'}),
	$COUNT, 'the other exchange still waits');
permit('.*');
$load->stop;
$node->wait_drained(timeout => 60 + $COUNT / 500);
all_delivered('ghost', 'ghosts', $COUNT + 1000 + $latest);
all_delivered('vault', 'vaults', $COUNT);
is($node->status('dead'), 0, 'none was given up');

# every order, of which only those in flight at the crash may have come twice
my %placed = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT id FROM placed');
wait_orders($since);
is(scalar(grep { !$orders->first($_) } keys %placed), 0, 'every order has arrived');
my %seen;
# by one writer; those that came along with the others committed in another order
my @first = grep { !$seen{ $_->{message_id} }++ && $_->{body} eq 'order' } $orders->received;
is(scalar(grep { $first[$_]{id} < $first[ $_ - 1 ]{id} } 1 .. $#first), 0, 'in order');
diag sprintf '%d orders, %d arrivals', scalar keys %seen, scalar(my @all = $orders->received);

# before and after the crash
for my $exchange (qw(ghost vault))
{
	my $opened = logged(qr/LOG: .*exchange "$exchange" cannot be used: /);

	ok($opened >= 1 && $opened <= 2, "$exchange: the log says that it cannot be used ($opened lines)");
	is(logged(qr/LOG: .*exchange "$exchange" can be used again/), 1, "$exchange: and that it can again");
}
is(logged(qr/LOG: .*cannot be used: /), 4, 'no others');

$orders->stop;

#
# names that fill the error text, at either parity: no character of it is cut in two
#
$node->safe_psql('postgres', q{CREATE DATABASE utf8 ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('utf8', 'CREATE EXTENSION outbox');
for my $name ("\xc3\xbc" x 127, 'x' . "\xc3\xbc" x 126)
{
	$node->safe_psql('utf8', "SELECT outbox.enqueue('$name', '', 'x'::text)");
	$node->wait_for('the exchange to be missed',
		"SELECT last_error LIKE 'exchange \"$name\" %' FROM outbox.status", dbname => 'utf8');
	is($node->value(q{SELECT octet_length(convert_to(last_error, 'LATIN1')) > 250 FROM outbox.status}, 'utf8'),
		't', 'an error text that was cut is still text');
}

$node->stop;
done_testing();
