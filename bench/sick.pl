#!/usr/bin/perl
#
# ./dev bench sick: how fast messages for healthy queues leave while quorum queues have
# lost their majority, and one message in ten is for one of these.  A cluster of three
# RabbitMQ nodes; its quorum queues lose their majority when two nodes are frozen.  Three
# states take turns; the median of the rounds counts:
#
#   alone  messages for healthy queues, and no others
#   well   and one in ten for a quorum queue, which is healthy as well
#   sick   and one in ten for a quorum queue without its majority; from when that is known
#
# Counted are the messages for the healthy queues only.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use List::Util qw(max sum);
use Time::HiRes qw(time);

use Outbox::Cluster;
use Outbox::Playground;
use Outbox::Wait qw(wait_until);

GetOptions(
	'count=i' => \(my $count = 20_000),
	'rounds=i' => \(my $rounds = 5),
	'queues=i' => \(my $queues = 4)) or exit 2;

$| = 1;
print "starting PostgreSQL and three nodes of RabbitMQ ...\n";
my $cluster = Outbox::Cluster->new;
$cluster->start;
my $broker = $cluster->node(1);
my @frozen = ($cluster->node(2), $cluster->node(3));
my @healthy = qw(h1 h2 h3);
my @quorum = map { "q$_" } 1 .. $queues;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for @healthy;
$cluster->declare_quorum_queue($_, 1) for @quorum;
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	broker => $broker,
	conf => <<'END');
outbox.confirm_timeout = '2s'
outbox.retry_delay_min = '500ms'
outbox.retry_delay_max = '2s'
END
$playground->wait_connected;
my %consumer = map { $_ => $broker->start_consumer($_) } @healthy;

sub enqueue
{
	my ($with_quorum) = @_;
	my $quorum = $with_quorum
	  ? "WHEN i % 10 = 0 THEN 'q' || i / 10 % $queues + 1"
	  : "WHEN i % 10 = 0 THEN NULL";

	$playground->sql(<<"END");
SELECT count(outbox.enqueue('', queue, repeat('x', 200)))
FROM generate_series(0, $count * 10 / 9 - 1) i,
	LATERAL (SELECT CASE $quorum ELSE 'h' || i % 3 + 1 END AS queue OFFSET 0) q
WHERE queue IS NOT NULL
END
	return;
}

# Messages per second for healthy queues.
sub slice
{
	my ($with_quorum) = @_;

	$playground->sql('SELECT outbox.pause()');
	$playground->wait_sql('the worker to pause', "SELECT state = 'paused' FROM outbox.worker_status()");
	my %before = map { $_ => $consumer{$_}->distinct } @healthy;
	enqueue($with_quorum);
	$playground->sql('CHECKPOINT');
	my $start = time();
	$playground->sql('SELECT outbox.resume()');
	wait_until('the messages for healthy queues',
		sub { $count - 10 <= sum(map { $consumer{$_}->distinct - $before{$_} } @healthy) }, 300, 20);
	my $end = max(map { ($_->received)[-1]{at} } values %consumer) / 1e6;
	return sum(map { $consumer{$_}->distinct - $before{$_} } @healthy) / ($end - $start);
}

sub sick
{
	$_->sigstop for @frozen;
	$playground->sql("SELECT outbox.enqueue('', 'q' || i % $queues + 1, 'x'::text) "
		  . "FROM generate_series(1, 20) i");
	$playground->wait_sql('the quorum queues to be unavailable',
		"SELECT count(*) = $queues FROM outbox.unavailable", 60);
	my $rate = slice(1);
	$_->sigcont for @frozen;
	$playground->wait_sql('the quorum queues to be available',
		'SELECT count(*) = 0 FROM outbox.unavailable', 120);
	return $rate;
}

my %state = (alone => sub { slice(0) }, well => sub { slice(1) }, sick => \&sick);
my @names = qw(alone well sick);
my %rate;

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

slice(1);    # not counted
printf "messages per second to healthy queues, %d in a slice\n\n%5s" . ('%10s' x @names) . "\n",
  $count, 'round', @names;
for my $round (1 .. $rounds)
{
	my %now;

	for my $name ($round % 2 ? @names : reverse @names)
	{
		$playground->wait_drained(300);
		push @{ $rate{$name} }, $now{$name} = $state{$name}->();
	}
	printf "%5d" . ('%10.0f' x @names) . "\n", $round, @now{@names};
}
my %median = map { $_ => median(@{ $rate{$_} }) } @names;
printf "\nmedian: alone %.0f; well %.0f; sick %.0f, ratio to well %.2f, to alone %.2f\n",
  @median{@names}, $median{sick} / $median{well}, $median{sick} / $median{alone};
