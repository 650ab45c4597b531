#!/usr/bin/perl
#
# ./dev bench backlog: how fast a backlog drains, and whether its size matters.  While
# RabbitMQ is away, messages of 200 bytes commit; it comes back, with a consumer waiting
# for it, and everything leaves.  Against a plain librabbitmq program (plain_publisher)
# that is started as the same broker comes back, and has its messages in memory.
#
#	rate      messages a second at the consumer, from the first to the last
#	first     seconds from when the broker accepts connections to the first message at
#	          the consumer, with the time that outbox waits between attempts to connect
#	anon_mb   the most private memory of the worker (RssAnon), looked at every 50 ms
#	cpu_us    of the publishing process per message
#
# With ten million messages the database takes 4 GB or so, with its WAL twice that, and a
# round half an hour; with --more its rounds add to those of earlier runs.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use Time::HiRes qw(sleep);

use Bench qw(maximum median run_seconds thousands);
use Outbox::Playground;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

use constant PER_TRANSACTION => 100_000;

GetOptions(
	'counts=s' => \(my $counts = '10000,500000,1000000,10000000'),
	'size=i' => \(my $size = 200),
	'more' => \my $more,
	'rounds=i' => \(my $rounds = 3),
	'window=i' => \(my $window = 1000),
	'conf=s' => \my @conf) or exit 2;

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	schedulers => `nproc` + 0,
	conf => join '', map { "$_\n" } "outbox.in_flight_messages = $window", @conf);
my $broker = $playground->broker;
my $dir = $broker->dir;
$playground->wait_connected;

# The last line that a program of ours printed.
sub words_of
{
	my ($process, $log) = @_;

	die "$process->{name} failed; see $log\n" if $process->{status} != 0;
	open my $in, '<', $log or die "$log: $!";
	my @lines = <$in>;
	close $in;
	return split ' ', $lines[-1];
}

sub start
{
	my ($name, @arguments) = @_;
	my $log = "$dir/$name.log";

	unlink $log;
	return Outbox::Process->start(
		name => $name,
		log => $log,
		command => [ "bench/$name", '--uri', $broker->uri, @arguments ]);
}

# With an empty queue, the broker goes away; a consumer waits for it.
sub begin
{
	eval { $broker->amqp('delete-queue', 'bench') };
	$broker->amqp('declare-queue', 'bench', 'classic', 'durable');
	$broker->stop;
	return;
}

# The broker returns, $watch looks now and then until everything has arrived.
sub drain
{
	my ($count, $watch) = @_;
	my $consumer = start('consumer', '--count', $count, '--wait', 120);

	$broker->start;
	while ($consumer->running)
	{
		$watch->();
		sleep 0.05;
	}
	my %told = words_of($consumer, "$dir/consumer.log");
	my $surplus = $broker->amqp('count', 'bench');
	die "$surplus messages too many\n" if $surplus > 0;
	return {
		rate => $count / (($told{last} - $told{first}) / 1e6),
		first => ($told{first} - $told{ready}) / 1e6
	};
}

sub plain
{
	my ($count) = @_;

	begin();
	my $publisher;
	my $figures = drain(
		$count,
		sub {
			$publisher //= start('plain_publisher', '--key', 'bench', '--count', $count,
				'--size', $size, '--window', $window);
		});
	$publisher->wait_exit;
	my %told = words_of($publisher, "$dir/plain_publisher.log");
	delete $figures->{first};    # it is started by hand
	return { %$figures, cpu_us => $told{cpu_us_per_message} };
}

sub enqueue
{
	my ($count) = @_;

	for (my $left = $count; $left > 0; $left -= PER_TRANSACTION)
	{
		my $some = $left < PER_TRANSACTION ? $left : PER_TRANSACTION;

		$playground->sql(<<"END");
SELECT count(outbox.enqueue('', 'bench', payload)) FROM generate_series(1, $some),
	(SELECT decode(repeat('78', $size), 'hex') AS payload) p
END
	}
	$playground->sql('CHECKPOINT');
	return;
}

sub anon_mb
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/status" or return 0;
	my $text = do { local $/; <$in> };
	close $in;
	return $text =~ /^RssAnon:\s+(\d+) kB/m ? $1 / 1024 : 0;
}

sub outbox
{
	my ($count) = @_;
	my $anon = 0;

	begin();
	enqueue($count);
	my $pid = $playground->sql('SELECT worker_pid FROM outbox.worker_status()');
	my $cpu = run_seconds($pid);
	my $figures = drain($count, sub { $anon = maximum($anon, anon_mb($pid)) });
	$playground->wait_drained(60);
	die "the worker was another one in the end\n" if !-e "/proc/$pid";
	return {
		%$figures,
		anon_mb => $anon,
		cpu_us => (run_seconds($pid) - $cpu) * 1e6 / $count
	};
}

my $bench = Bench->new('backlog', more => $more);
my @counts = split /,/, $counts;

sub case { return thousands($_[0]) =~ tr/,/ /r . ' messages'; }

for my $count (@counts)
{
	$bench->turns(case($count), $rounds, [ plain => sub { plain($count) } ],
		[ outbox => sub { outbox($count) } ]);
}
$bench->finish(figures => [qw(rate first anon_mb cpu_us)]);

# How much of the speed is left with a larger backlog?  Of all that was ever measured.
sub ratio
{
	my ($case) = @_;
	my @ours = $bench->values($case, 'outbox', 'rate');
	my @plain = $bench->values($case, 'plain', 'rate');

	return @ours && @plain ? median(@ours) / median(@plain) : undef;
}

my $base = case(500_000);
my @lines = ([ 'case', 'outbox / plain', "to that of $base" ]);

for my $case ($bench->cases)
{
	my $ratio = ratio($case) // next;

	push @lines, [ $case, sprintf('%.3f', $ratio), ratio($base) ? sprintf('%.3f', $ratio / ratio($base)) : '' ];
}
print "\n";
Bench::print_table(@lines);
