#!/usr/bin/perl
#
# ./dev bench drain: how long it takes to publish what is already committed. The
# opponent is a plain librabbitmq program that publishes the same messages from memory,
# with the same window.  Nobody consumes; each turn has a new queue, and counts what is
# in it at the end.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use Time::HiRes qw(time);

use Bench qw(cpu_seconds);
use Outbox::Playground;

GetOptions(
	'count=i' => \(my $count = 500_000),
	'size=i' => \(my $size = 200),
	'rounds=i' => \(my $rounds = 5),
	'window=i' => \(my $window = 1000),
	'queue=s' => \(my $type = 'classic'),
	'case=s' => \my $case,
	'conf=s' => \my @conf) or exit 2;
$case //= "$type queue $size B";

my $bench = Bench->new('drain');
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	schedulers => `nproc` + 0,
	conf => join '', map { "$_\n" } "outbox.in_flight_messages = $window", @conf);
my $broker = $playground->broker;
$playground->wait_connected;

sub fresh_queue
{
	eval { $broker->amqp('delete-queue', 'bench') };
	$broker->amqp('declare-queue', 'bench', $type, 'durable');
	return;
}

# The count of a stream is an estimate.
sub check_count
{
	return if $type eq 'stream';
	my $stored = $broker->amqp('count', 'bench');

	die "the queue has $stored messages instead of $count\n" if $stored < $count;
	return;
}


sub plain
{
	fresh_queue();
	my (undef, $out) = $broker->capture({}, 'bench/plain_publisher',
		'--uri', $broker->uri, '--key', 'bench', '--count', $count,
		'--size', $size, '--window', $window);
	my ($seconds, $cpu) = $out =~ /seconds ([\d.]+) .*cpu_us_per_message ([\d.]+)/
	  or die "plain_publisher: $out\n";
	check_count();
	return { rate => $count / $seconds, cpu_us => $cpu };
}

sub outbox
{
	fresh_queue();
	$playground->sql('SELECT outbox.pause()');
	$playground->wait_sql('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
	$playground->sql(<<"SQL");
SELECT count(outbox.enqueue('', 'bench', payload)) FROM generate_series(1, $count),
	(SELECT decode(repeat('78', $size), 'hex') AS payload) p;
CHECKPOINT;
SQL
	my $pid = $playground->sql('SELECT worker_pid FROM outbox.status');
	my $cpu = cpu_seconds($pid);
	my $seconds = $playground->sql(<<"SQL");
SELECT confirmed + $count AS target FROM outbox.worker_status() \\gset
SET bench.target = :'target';
SELECT clock_timestamp() AS start \\gset
SELECT outbox.resume() \\g /dev/null
DO \$\$
BEGIN
	WHILE (SELECT confirmed FROM outbox.worker_status()) < current_setting('bench.target')::bigint
	LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END
\$\$;
SELECT extract(epoch FROM clock_timestamp() - :'start');
SQL
	$cpu = cpu_seconds($pid) - $cpu;
	check_count();
	$playground->wait_drained(60);
	return { rate => $count / $seconds, cpu_us => $cpu * 1e6 / $count };
}

$bench->turns($case, $rounds, [ plain => \&plain ], [ outbox => \&outbox ]);
$bench->finish;
