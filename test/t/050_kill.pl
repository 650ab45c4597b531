# Proves that nothing is lost, and nothing invented, when the worker, the server
# and RabbitMQ are killed with -9 at random under load, and that what comes twice
# is no more than what was in flight and what the last 200 ms can have settled.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use List::Util qw(max min);
use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Load;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders sets_ok busiest_stretch);
use Outbox::Wait qw(wait_until);

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
my $kills = $ENV{OUTBOX_TEST_KILLS} // 20;
diag "seed $seed (OUTBOX_TEST_SEED), $kills kills (OUTBOX_TEST_KILLS)";
srand($seed);

my $in_flight = 1000;
my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<"END");
outbox.in_flight_messages = $in_flight
outbox.segment_size = '1MB'
END
create_orders($node);
my $consumer = $broker->start_consumer('orders');
my $load = Outbox::Load->new(node => $node, seed => $seed);
$load->start;

sub kill_worker
{
	# it may just be starting
	my $pid = wait_until('a worker to kill', sub { $node->worker_pid }, 60, 10);

	kill 'KILL', $pid;
	wait_until("worker $pid to be gone", sub { ($node->worker_pid // $pid) != $pid }, 60);
	return;
}

sub kill_server
{
	$node->kill9;
	$node->start;
	return;
}

sub kill_broker
{
	$broker->kill9;
	$broker->start;
	return;
}

# A few more than a dozen of the fast ones, then everything must flow again before
# the next kill: otherwise a later kill would hit a system that does nothing.
my %how = (worker => \&kill_worker, server => \&kill_server, broker => \&kill_broker);
my @plan = map { ('worker', 'server', 'broker')[ $_ % 3 ] } 0 .. $kills - 1;
for my $i (reverse 1 .. $#plan)
{
	my $j = int(rand($i + 1));
	@plan[ $i, $j ] = @plan[ $j, $i ];
}
my $start = time();
my $number = 0;
my @killed_at;
for my $victim (@plan)
{
	my $arrived = $consumer->distinct;
	my $delay = rand(0.5);
	my $since;

	# messages flow, and then a random moment later
	wait_until(
		'messages to flow before the next kill',
		sub {
			$since //= time() if $consumer->distinct > $arrived + 20;
			return $since && time() - $since >= $delay;
		},
		120, 5);
	note sprintf 'kill %d after %.1f s: %s', ++$number, time() - $start, $victim;
	push @killed_at, 1e6 * time();
	$how{$victim}->();
}
diag sprintf '%d kills (%s) in %.0f s', $number, join(' ', @plan), time() - $start;

$load->stop;
$node->wait_connected(timeout => 60);
$node->wait_drained(timeout => 120);
my @committed = committed_orders($node);
eval { $consumer->wait_distinct(scalar @committed, 30) };
$consumer->wait_quiet(1);
my @received = $consumer->received;

my %result = sets_ok(\@committed, \@received, "$kills kills", duplicates => scalar @received);
diag sprintf '%d orders committed, %d duplicates, %d redelivered by the broker',
  scalar @committed, scalar @{ $result{duplicates} }, scalar @{ $result{redelivered} };

# Duplicates that arrive between one kill and the next are owed to the first of
# them.  They may be what was then in flight, and what had been settled since
# progress was last recorded: no more than the busiest stretch between two records
# since the kill before.  That is 200 ms, and what a busy machine adds to them: the
# turn of the loop that is under way, and the flush of the record.
my $between_records = 250_000;

# When the next kill comes soon, copies owed to the one before may still be on their
# way: no more of them than it was allowed and has not yet shown.
my ($too_many, $largest, $largest_allowed, $on_their_way) = (0, 0, 0, 0);
for my $i (0 .. $#killed_at)
{
	my ($from, $at, $to) = ($i ? $killed_at[ $i - 1 ] : 0, $killed_at[$i], $killed_at[ $i + 1 ] // 1e18);
	my $count = grep { $_->{at} >= $at && $_->{at} < $to } @{ $result{duplicates} };
	my $allowed = $in_flight + $on_their_way
	  + busiest_stretch($between_records, map { $_->{at} } grep { $_->{at} >= $from && $_->{at} < $at } @received);

	note sprintf 'kill %d (%s): %d duplicates, %d allowed', $i + 1, $plan[$i], $count, $allowed;
	($largest, $largest_allowed) = ($count, $allowed) if $count > $largest;
	$too_many++ if $count > $allowed;
	$on_their_way = min($in_flight, max(0, $allowed - $count));
}
is($too_many, 0,
	"after each kill, duplicates only of what was in flight and of the last 200 ms")
  or diag 'see the log of this test for each kill';
diag sprintf 'most duplicates after one kill: %d (%d allowed)', $largest, $largest_allowed;
is($node->status('dead'), 0, 'nothing ended in dead_letter');

done_testing();
