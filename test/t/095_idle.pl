# Proves that a worker with nothing to do uses no measurable CPU: in 10 s no more
# than one clock tick of 10 ms, and no more wake-ups than outbox.poll_interval and its
# own heartbeats explain: those of the broker are read along.  Idle, with a message
# scheduled for later, with one waiting for a retry and others behind it, paused with
# messages waiting, and disabled (no outbox.uri); and the launcher.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

plan skip_all => 'the sanitizers cost CPU of their own' if $ENV{OUTBOX_SANITIZE};

my $SECONDS = 10;
my $POLL = 5;
my $HEARTBEAT = 4;

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	extension => 0,
	conf => <<"END");
outbox.poll_interval = '${POLL}s'
outbox.heartbeat = '${HEARTBEAT}s'
outbox.retry_delay_min = '1h'
outbox.retry_delay_max = '1h'
autovacuum = off
END

my %waiting = (
	idle => [ '', "state = 'idle' AND pending = 0" ],
	scheduled => [
		q{SELECT outbox.enqueue('', 'orders', 'x'::text, deliver_at => now() + interval '1 h',
			ordering_key => 'k')},
		"state = 'idle' AND pending = 0 AND deferred = 1"
	],
	retry => [
		q{SELECT outbox.enqueue('', 'nowhere', 'x'::text, ordering_key => 'k')
			FROM generate_series(1, 3)},
		"state = 'idle' AND pending = 0 AND deferred = 3"
	],
	paused => [
		q{SELECT outbox.pause(); SELECT outbox.enqueue('', 'orders', 'x'::text)
			FROM generate_series(1, 100)},
		"state = 'paused' AND pending = 100"
	],
	disabled => [
		q{SELECT outbox.enqueue('', 'orders', 'x'::text) FROM generate_series(1, 100)},
		"state = 'disabled' AND pending = 100"
	]);
for my $name (sort keys %waiting)
{
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql('postgres', "ALTER DATABASE $name SET outbox.uri = ''") if $name eq 'disabled';
	$node->safe_psql($name, 'CREATE EXTENSION outbox');
}

# each has published something before, then waits
for my $name (sort keys %waiting)
{
	my ($sql, $state) = @{ $waiting{$name} };

	if ($name ne 'disabled')
	{
		$node->wait_connected(dbname => $name);
		$node->safe_psql($name,
			q{SELECT outbox.enqueue('', 'orders', 'x'::text) FROM generate_series(1, 1000)});
		$node->wait_drained(dbname => $name);
	}
	$node->safe_psql($name, $sql) if $sql ne '';
	$node->wait_for("the worker of $name to have nothing to do",
		"SELECT $state AND in_flight = 0 FROM outbox.status", dbname => $name);
}

my %pid = map { $_ => $node->value("SELECT worker_pid FROM outbox.status", $_) } sort keys %waiting;
$pid{launcher} = $node->value(
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'outbox launcher'");

sub usage
{
	my ($pid) = @_;

	# In nanoseconds: ticks are counted for user and system apiece, and next to nothing
	# may complete one of each.
	open my $in, '<', "/proc/$pid/schedstat" or die "/proc/$pid/schedstat: $!";
	my ($run_ns) = split ' ', <$in>;
	close $in;
	open $in, '<', "/proc/$pid/status" or die "/proc/$pid/status: $!";
	my ($switches) = join('', <$in>) =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	close $in;
	return { cpu_ms => $run_ns / 1e6, switches => $switches };
}

# Upkeep of the segments follows the last message by up to 2 s.
my %last = map { $_ => 0 } keys %pid;
wait_until(
	'each worker to come to rest',
	sub {
		my $busy = 0;

		for my $name (keys %pid)
		{
			my $switches = usage($pid{$name})->{switches};

			$busy++ if $switches - $last{$name} > 10;
			$last{$name} = $switches;
		}
		return !$busy;
	},
	20, 2000);

my %before = map { $_ => usage($pid{$_}) } keys %pid;
my $start = time();
wait_until("$SECONDS s to pass", sub { time() - $start >= $SECONDS }, $SECONDS + 5, 100);
my %after = map { $_ => usage($pid{$_}) } keys %pid;
my $seconds = time() - $start;

# Either side sends a heartbeat every half interval.  A wake-up is one switch; some
# have another, if the process had to wait for something when it looked around.
my $wakeups = $seconds / $POLL + 1 + $seconds / ($HEARTBEAT / 2) + 1;
for my $name (sort keys %pid)
{
	my $cpu_ms = $after{$name}{cpu_ms} - $before{$name}{cpu_ms};
	my $switches = $after{$name}{switches} - $before{$name}{switches};

	is(usage($pid{$name}) && 1, 1, "$name: the process is still there");
	cmp_ok($cpu_ms, '<=', 10, "$name: no measurable CPU");
	cmp_ok($switches, '<=', $wakeups, "$name: wakes up only when there is a reason");
	diag sprintf '%-10s %.1f ms of CPU, %d voluntary context switches in %.1f s (at most %d)', $name,
	  $cpu_ms, $switches, $seconds, $wakeups;
}

done_testing();
