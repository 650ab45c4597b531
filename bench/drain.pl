#!/usr/bin/perl
#
# ./dev bench: how long outbox takes to publish what is already committed, against
# a plain librabbitmq program that publishes the same from memory.  Both take turns
# at the same queue of the same broker; the median of the rounds counts.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;

use Outbox::Playground;

GetOptions(
	'count=i' => \(my $count = 500_000),
	'size=i' => \(my $size = 200),
	'rounds=i' => \(my $rounds = 5),
	'window=i' => \(my $window = 1000),
	'queue=s' => \(my $type = 'classic'),
	'conf=s' => \my @conf) or exit 2;

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
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

sub check_count
{
	my $stored = $broker->amqp('count', 'bench');

	die "the queue has $stored messages instead of $count\n" if $stored < $count;
	return;
}

# Seconds of CPU a process has used.
sub cpu_of
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/stat" or return 0;
	my @fields = split / /, (<$in> =~ s/^.*\) //r);
	close $in;
	return ($fields[11] + $fields[12]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
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
	return ($seconds, $cpu);
}

sub outbox
{
	fresh_queue();
	$playground->sql(<<"END");
SELECT outbox.pause();
END
	$playground->wait_sql('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
	$playground->sql(<<"END");
SELECT count(outbox.enqueue('', 'bench', payload)) FROM generate_series(1, $count),
	(SELECT decode(repeat('78', $size), 'hex') AS payload) p;
CHECKPOINT;
END
	my $pid = $playground->sql('SELECT worker_pid FROM outbox.status');
	my $cpu = cpu_of($pid);
	my $out = $playground->sql(<<"SQL");
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
	$cpu = cpu_of($pid) - $cpu;
	check_count();
	$playground->wait_drained(60);
	return ($out, $cpu * 1e6 / $count);
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

my (@plain, @outbox);
printf "%d messages of %d bytes, %s queue, window %d\n\n", $count, $size, $type, $window;
printf "%5s  %24s  %24s\n", 'round', 'plain librabbitmq', 'outbox';
for my $round (1 .. $rounds)
{
	my @order = $round % 2 ? (\&plain, \&outbox) : (\&outbox, \&plain);
	my @first = $order[0]->();
	my @second = $order[1]->();
	my ($p, $o) = $round % 2 ? (\@first, \@second) : (\@second, \@first);

	push @plain, $p->[0];
	push @outbox, $o->[0];
	printf "%5d  %8.2f s  %5.2f us CPU  %8.2f s  %5.2f us CPU\n", $round, @$p, @$o;
}
my ($p, $o) = (median(@plain), median(@outbox));
printf "\nmedian: plain %.2f s (%.0f/s), outbox %.2f s (%.0f/s), ratio %.2f\n",
  $p, $count / $p, $o, $count / $o, $o / $p;
