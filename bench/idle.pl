#!/usr/bin/perl
#
# ./dev bench idle: what ten workers cost that are connected to the broker and have
# nothing to do, and a relay that asks its table every 100 ms.
#
#	cpu_ms       of one process in a minute, by the kernel's account in nanoseconds
#	ticks        the same as ps and top see it, in clock ticks, whole ones
#	wakeups      voluntary context switches of one process in a minute
#	per_poll     wakeups in relation to outbox.poll_interval
#	cpu_ms_max, wakeups_max   of the worst of the ten
#
# A worker wakes to poll, and to send a heartbeat, half of outbox.heartbeat after it sent
# something; with the defaults (5 s, 15 s) at the same time.  Those of RabbitMQ are read
# along.  Of a relay and of its server process all threads are counted.
#
# Needs the relays (bench/relays).

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use List::Util qw(max sum);
use POSIX ();
use Time::HiRes qw(sleep time);

use Bench qw(cpu_seconds run_seconds);
use Bench::Relay;
use Outbox::Playground;

GetOptions(
	'seconds=i' => \(my $seconds = 60),
	'databases=i' => \(my $databases = 10),
	'rounds=i' => \(my $rounds = 1),
	'relays=s' => \(my $relays = 'node'),
	'conf=s' => \my @conf) or exit 2;

use constant SETTLE_S => 5;    # after the last message or connection

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	conf => join '', map { "$_\n" } 'max_worker_processes = ' . ($databases + 8), @conf);
my @names = ('bench', map { "bench$_" } 2 .. $databases);

$playground->broker->amqp('declare-queue', 'bench', 'classic', 'durable');
for my $name (@names)
{
	if ($name ne $playground->dbname)
	{
		$playground->sql("CREATE DATABASE $name", 'postgres');
		$playground->sql('CREATE EXTENSION outbox', $name);
	}
	# none is as new as on its first day
	wait_connected($name);
	$playground->sql("SELECT count(outbox.enqueue('', 'bench', 'x'::text)) FROM generate_series(1, 1000)", $name);
}
my $poll_s = $playground->sql(
	q{SELECT extract(epoch FROM current_setting('outbox.poll_interval')::interval)});

sub wait_connected
{
	my ($name) = @_;
	my $end = time() + 30;

	while (($playground->try_sql('SELECT connected_since IS NOT NULL FROM outbox.worker_status()', $name))[0] ne 't')
	{
		die "the worker of $name does not connect\n" if time() > $end;
		sleep 0.05;
	}
	return;
}

sub wakeups
{
	my ($pid) = @_;
	my $count = 0;

	for my $file (glob "/proc/$pid/task/*/status")
	{
		open my $in, '<', $file or next;
		my $text = do { local $/; <$in> } // '';
		close $in;
		$count += $1 if $text =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	}
	return $count;
}

sub account
{
	my ($pid) = @_;

	-e "/proc/$pid" or die "process $pid has ended\n";
	return {
		cpu_ms => 1000 * run_seconds($pid),
		ticks => POSIX::floor(0.5 + cpu_seconds($pid) * POSIX::sysconf(POSIX::_SC_CLK_TCK())),
		wakeups => wakeups($pid)
	};
}

# What one of these processes does in a minute, on average and at worst.
sub measure
{
	my @pids = @_;
	my (%figures, %minute);

	sleep SETTLE_S;
	my $begin = time();
	my %before = map { $_ => account($_) } @pids;
	sleep $seconds;
	my %after = map { $_ => account($_) } @pids;
	my $minutes = (time() - $begin) / 60;

	for my $figure (qw(cpu_ms ticks wakeups))
	{
		my @values = map { ($after{$_}{$figure} - $before{$_}{$figure}) / $minutes } @pids;

		$figures{$figure} = sum(@values) / @values;
		$figures{"${figure}_max"} = max(@values);
	}
	$figures{per_poll} = $figures{wakeups} / (60 / $poll_s);
	return \%figures;
}

sub pids_of
{
	my ($type) = @_;

	return split /\n/, $playground->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = '$type'");
}

sub outbox
{
	my @pids = pids_of('outbox worker');

	die "there are not $databases workers but " . @pids . "\n" if @pids != $databases;
	return measure(@pids);
}

# Its process and that of the server, as one.
sub relay
{
	my ($name) = @_;
	my $database = $playground->create_database('relay');
	my $relay = Bench::Relay->new(name => $name, playground => $database, poll_ms => 100);

	$relay->set_up;
	$relay->start;
	my @pids = ($relay->pids, split /\n/,
		$playground->sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'relay'}));
	my $figures = measure(@pids);
	$relay->stop;
	$database->drop_database;
	delete @{$figures}{ 'per_poll', grep { /_max$/ } keys %$figures };
	$_ *= @pids for values %$figures;
	return $figures;
}

my $bench = Bench->new('idle');

$bench->turns(
	"$databases idle workers",
	$rounds,
	[ outbox => \&outbox ],
	[ 'outbox launcher' => sub { return measure(pids_of('outbox launcher')) } ],
	map { my $name = $_; [ "$name poll" => sub { relay($name) } ] } split /,/, $relays);
$bench->finish(figures => [qw(cpu_ms cpu_ms_max ticks ticks_max wakeups wakeups_max per_poll)]);
