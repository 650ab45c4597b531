# Proves that a queue which answers nothing holds up nobody else.  A cluster of three
# RabbitMQ nodes; classic queues on the one that the worker talks to, and quorum queues
# that lose their majority with the other two.  The messages for those are set aside,
# all others keep arriving, about as fast as ever, and once the nodes are back what was
# set aside is delivered, in order.
#
# RabbitMQ stops reading a connection on which some sixty messages wait for such a queue,
# so that nobody's messages would be taken any more.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use List::Util qw(max min sum);
use Test::More;
use Time::HiRes qw(time);

use Outbox::Cluster;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $SLICE = 9_000;       # messages for healthy queues in one measurement
my $ROUNDS = 3;
my @HEALTHY = qw(h1 h2 h3);
my @SILENT = qw(silent1 silent2 silent3 silent4);
my $began = time();

my $cluster = Outbox::Cluster->new;
my @away = ($cluster->node(2), $cluster->node(3));
$cluster->start;
diag sprintf '%.1f s: three nodes are up', time() - $began;
my $broker = $cluster->node(1);
$broker->amqp('declare-queue', $_, 'classic', 'durable') for @HEALTHY;
# Those that still have their leader are silent; one that has lost it too refuses, but only
# what comes on another connection.
$cluster->declare_quorum_queue($_, 1) for @SILENT;
$cluster->declare_quorum_queue('leaderless', 2);

my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.confirm_timeout = '1500ms'
outbox.retry_delay_min = '200ms'
outbox.retry_delay_max = '1s'
outbox.max_attempts = 3
END
my %consumer = map { $_ => $broker->start_consumer($_) } @HEALTHY;

#
# a steady load
#
$node->safe_psql('postgres', <<'END');
CREATE TABLE sent (id uuid PRIMARY KEY, queue text NOT NULL, seq bigserial,
	at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION send(queue text) RETURNS void LANGUAGE sql AS $$
	INSERT INTO sent (id, queue) SELECT outbox.enqueue('', queue, 'load'::text), queue;
$$;
END
my $script = $broker->dir . '/load.sql';
open my $out, '>', $script or die "$script: $!";
print $out <<'END';
SELECT send(queue) FROM unnest('{h1,h2,h3,silent1,silent2,h1,h2,h3,leaderless,silent3,h1,h2,h3,silent4}'::text[]) queue;
END
close $out or die "$script: $!";

sub start_load
{
	return Outbox::Process->start(
		name => 'pgbench',
		log => $broker->dir . '/load.log',
		command => [
			'pgbench', '-h', $node->host, '-p', $node->port, '-n', '-c', 1,
			'-R', 50, '-T', 600, '-f', $script, 'postgres'
		]);
}

# Wait until what was sent up to now to healthy queues has arrived.
sub wait_healthy
{
	my ($timeout) = @_;

	for my $queue (@HEALTHY)
	{
		my $id = $node->safe_psql('postgres',
			"SELECT id FROM sent WHERE queue = '$queue' ORDER BY seq DESC LIMIT 1");

		$consumer{$queue}->wait_message($id, $timeout);
	}
	return;
}

# Seconds from the insert to the arrival, for messages to healthy queues sent after
# a moment.
sub latencies
{
	my ($since) = @_;
	my @seconds;

	for my $line (split /\n/,
		$node->safe_psql('postgres', <<"END"))
SELECT id, queue, extract(epoch FROM at) FROM sent
WHERE at > '$since' AND queue LIKE 'h%'
END
	{
		my ($id, $queue, $at) = split /\|/, $line;
		my $first = $consumer{$queue}->first($id);

		push @seconds, $first ? $first->{at} / 1e6 - $at : 1e9;
	}
	return sort { $a <=> $b } @seconds;
}

# The sick queues, as the view shows them.
sub wait_unavailable
{
	my ($expected, $timeout) = @_;

	return $node->wait_for(
		"unavailable: $expected",
		q{SELECT coalesce(string_agg(format('%s/%s/%s', reason, exchange, routing_key), ' '
			ORDER BY routing_key), 'none') FROM outbox.unavailable},
		expected => $expected, timeout => $timeout);
}

# Lines of the server's log that match, since the start.
sub logged
{
	my ($pattern) = @_;

	open my $in, '<', $node->logfile or die $node->logfile . ": $!";
	my @lines = grep { $_ =~ $pattern } <$in>;
	close $in;
	return @lines;
}

sub now { return $node->safe_psql('postgres', 'SELECT clock_timestamp()'); }

my $load = start_load();
wait_until('some messages to arrive everywhere',
	sub { !grep { $_->distinct < 200 } values %consumer }, 30);
is($node->status('deferred'), 0, 'while all are well nothing is set aside');
is($node->value('SELECT count(*) FROM outbox.unavailable'), 0, 'nor unavailable');

#
# the majority is lost
#
my $lost_at = time();
my $reconnects = $node->status('reconnects');
my @sick = map { "stalled//$_" } 'leaderless', @SILENT;
$_->kill9 for @away;
wait_unavailable("@sick", 40);
diag sprintf '%.1f s: all of them set aside %.1f s after the loss', time() - $began,
  time() - $lost_at;
# not one after another, each with a time-out of its own
cmp_ok($node->status('reconnects') - $reconnects, '<=', 2,
	'however many queues are sick, it takes one or two connections to tell');
wait_healthy(20);
my $since = now();
my $connected = $node->status('connected_since');
$node->safe_psql('postgres', 'SELECT pg_sleep(5)');    # longer than three times confirm_timeout
my $until = now();
wait_healthy(20);
my @latencies = latencies($since);
diag sprintf '%d messages to healthy queues meanwhile: median %.0f ms, 95 %% %.0f ms, longest %.0f ms',
  scalar @latencies, map { 1000 * $latencies[ $_ * $#latencies ] } 0.5, 0.95, 1;
cmp_ok(scalar @latencies, '>', 500, 'messages to healthy queues keep coming');
cmp_ok($latencies[ 0.95 * $#latencies ], '<', 1, 'and arrive at once');
is($node->status('connected_since'), $connected, 'their connection stays');
is($node->value(q{SELECT count(*) FROM outbox.deferred WHERE routing_key LIKE 'h%'}),
	0, 'none of them is set aside');
is($node->value(q{SELECT count(*) FROM outbox.unavailable WHERE routing_key LIKE 'h%'}),
	0, 'and their queues are not called unavailable');
is($node->value(q{SELECT count(*) FROM outbox.deferred WHERE reason <> 'stalled' OR due_at <> 'infinity'}),
	0, 'what is set aside waits for its queue');
is( $node->value(
		q{SELECT messages > 100 AND oldest < now() - interval '3 s' AND last_error <> ''
			FROM outbox.unavailable WHERE routing_key = 'silent2'}) // '',
	't', 'unavailable says how many, since when, and why');
is($node->status('dead'), 0, 'nothing is given up');

# an ordering key whose messages go both ways
$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('', CASE i % 2 WHEN 1 THEN 'silent1' ELSE 'h1' END, 'k' || i, ordering_key => 'k')
FROM generate_series(1, 6) i;
SELECT outbox.enqueue('', 'h1', 'other'::text, ordering_key => 'l');
END
wait_until('the message of the other key',
	sub { grep { $_->{body} eq 'other' } $consumer{h1}->received }, 20);
$node->wait_for('the key to wait as a whole',
	q{SELECT count(*) = 6 FROM outbox.deferred WHERE ordering_key = 'k'});
ok(!(grep { $_->{body} =~ /^k/ } $consumer{h1}->received),
	'what has the ordering key of a message that is set aside waits behind it');

# the worker starts anew
my $silent = $node->value(q{SELECT count(*) FROM outbox.deferred WHERE reason = 'stalled'});
my $worker = $node->worker_pid;
$node->safe_psql('postgres', 'SELECT outbox.reload()');
$node->wait_for('another worker', "SELECT worker_pid <> $worker AND connected_since IS NOT NULL FROM outbox.status");
$since = now();
$node->safe_psql('postgres', 'SELECT pg_sleep(2)');
wait_healthy(20);
@latencies = latencies($since);
diag sprintf 'after a restart of the worker: median %.0f ms, 95 %% %.0f ms, longest %.0f ms',
  map { 1000 * $latencies[ $_ * $#latencies ] } 0.5, 0.95, 1;
cmp_ok($node->value(q{SELECT count(*) FROM outbox.deferred WHERE reason = 'stalled'}),
	'>=', $silent, 'another worker leaves aside what is set aside');

# It tries one after another; one that works before its turn has come is no news in the log.
$worker = $node->worker_pid;
for my $queue (@SILENT, 'leaderless')
{
	wait_until("this worker to find that $queue takes no messages",
		sub { logged(qr/\[$worker\] LOG: .*with routing key "$queue" takes no messages/) }, 40);
}

#
# and is back
#
my $back_at = time();
$_->launch for @away;
$_->wait_ready for @away;
wait_unavailable('none', 40);
$load->stop;
$node->wait_drained(timeout => 60);
diag sprintf '%.1f s: all delivered %.1f s after the nodes were started', time() - $began,
  time() - $back_at;
$consumer{$_} = $broker->start_consumer($_) for @SILENT, 'leaderless';

my %sent;
for my $line (split /\n/, $node->safe_psql('postgres', 'SELECT queue, id FROM sent ORDER BY seq'))
{
	my ($queue, $id) = split /\|/, $line;
	push @{ $sent{$queue} }, $id;
}
for my $queue (sort keys %sent)
{
	my $place = 0;
	my %place = map { $_ => $place++ } @{ $sent{$queue} };
	my $consumer = $consumer{$queue};

	ok(eval { $consumer->wait_distinct(scalar @{ $sent{$queue} }, 20) }, "$queue: all delivered")
	  or diag $@;
	my @arrived = grep { $_->{body} eq 'load' } $consumer->received;
	my %seen;
	my @first = map { $place{ $_->{message_id} } } grep { !$seen{ $_->{message_id} }++ } @arrived;
	my @wrong = grep { $first[$_] < $first[ $_ - 1 ] } 1 .. $#first;
	diag sprintf '%s: %d sent, %d arrivals', $queue, scalar @{ $sent{$queue} }, scalar @arrived;
	is(scalar @wrong, 0, "$queue: first deliveries in order");
}
is($node->status('dead'), 0, 'nothing was given up');
wait_until('the messages of the ordering key', sub {
	3 <= grep { $_->{body} =~ /^k\d/ } $consumer{h1}->received }, 20);
my %seen;
is(join(' ', grep { !$seen{$_}++ } map { $_->{body} } grep { $_->{body} =~ /^k\d/ } $consumer{h1}->received),
	'k2 k4 k6', 'those behind it have arrived, in order');
for my $queue (@SILENT, 'leaderless')
{
	my $opened = logged(qr/LOG: .*with routing key "$queue" takes no messages/);
	my $closed = logged(qr/LOG: .*with routing key "$queue" takes messages again/);

	# it was noticed before and after the worker started anew
	ok($opened >= 1 && $opened <= 2, "the log says that $queue takes no messages ($opened lines)");
	is($closed, 1, 'and once that it does again');
}
is(scalar logged(qr/LOG: .*with routing key "h\d" takes no/), 0, 'and nothing of the others');

#
# how fast the others are meanwhile: frozen nodes are as good as lost ones, and can be
# had back at once
#
sub slice
{
	my ($name) = @_;

	$node->safe_psql('postgres', 'SELECT outbox.pause()');
	$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.worker_status()");
	my %before = map { $_ => $consumer{$_}->distinct } @HEALTHY;
	$node->safe_psql('postgres', <<"END");
SELECT count(outbox.enqueue('', CASE i % 10 WHEN 0 THEN 'silent' || i / 10 % 4 + 1 ELSE 'h' || i % 3 + 1 END,
	'$name'::text))
FROM generate_series(0, $SLICE * 10 / 9 - 1) i
END
	my $start = time();
	$node->safe_psql('postgres', 'SELECT outbox.resume()');
	wait_until("the slice $name",
		sub { $SLICE <= sum(map { $consumer{$_}->distinct - $before{$_} } @HEALTHY) }, 60, 20);
	my $end = max(map { ($_->received)[-1]{at} } @consumer{@HEALTHY}) / 1e6;
	return $SLICE / ($end - $start);
}

sub median { my @sorted = sort { $a <=> $b } @_; return $sorted[ $#sorted / 2 ]; }

my %rate;
slice('not counted');
for my $round (1 .. $ROUNDS)
{
	$node->wait_drained(timeout => 30);
	push @{ $rate{well} }, slice("well$round");
	$node->wait_drained(timeout => 30);
	$_->sigstop for @away;
	# it takes a few messages to notice
	$node->safe_psql('postgres', q{SELECT outbox.enqueue('', 'silent' || i % 4 + 1, 'probe'::text) FROM generate_series(0, 19) i});
	wait_unavailable(join(' ', map { "stalled//$_" } @SILENT), 30);
	push @{ $rate{sick} }, slice("sick$round");
	$_->sigcont for @away;
	wait_unavailable('none', 30);
}
$node->wait_drained(timeout => 60);
my $ratio = median(@{ $rate{sick} }) / median(@{ $rate{well} });
for my $state (qw(well sick))
{
	diag "$state: ", join ', ', map { sprintf '%.0f', $_ } @{ $rate{$state} };
}
diag sprintf 'messages per second to healthy queues: %.0f while all are well, %.0f while one is sick, ratio %.2f',
  median(@{ $rate{well} }), median(@{ $rate{sick} }), $ratio;
cmp_ok($ratio, '>', 0.7, 'healthy queues keep their throughput');

$_->stop for values %consumer;
$node->stop;
diag sprintf '%.1f s in all', time() - $began;
done_testing();
