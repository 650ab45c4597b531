#!/usr/bin/perl
#
# ./dev bench bloat: an hour's worth of messages, compressed.  Messages are enqueued as
# fast as they are delivered, never more than --backlog of them waiting, while another
# session holds a snapshot from before the first one, as a report or a dump does: what is
# deleted from then on cannot be vacuumed away.
#
#   outbox  until --count messages are delivered
#   node    a relay with SELECT ... FOR UPDATE SKIP LOCKED and DELETE (bench/relays/node);
#           for --seconds at most
#
# Every second: messages delivered so far, the rate since, the size of the tables with
# their indexes and TOAST, the size of the system catalogs, dead tuples as the statistics
# of the server have them.  Ten times: dead tuples counted (pgstattuple), for outbox in
# the segments and in all other tables of it.  The queue is in memory and drops its oldest
# messages: the broker shall not be what limits; and no checkpoint falls into a turn, which
# would slow down a part of it.  Each turn has servers of its own; of the first one of each
# is kept what was seen every second.
#
# Needs the relays

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use List::Util qw(max min);
use Time::HiRes qw(time usleep);

use Bench qw(maximum thousands);
use Bench::Relay;
use Bench::Session;
use Outbox::Playground;

GetOptions(
	'count=i' => \(my $count = 2_000_000),
	'seconds=i' => \(my $limit = 300),
	'size=i' => \(my $size = 200),
	'backlog=i' => \(my $backlog = 20_000),
	'batch=i' => \(my $batch = 2_000),
	'interval=f' => \(my $interval = 1),
	'rounds=i' => \(my $rounds = 1),
	'only=s' => \(my $only = 'outbox,node')) or exit 2;

my $bench = Bench->new('bloat');

sub new_playground
{
	print "starting PostgreSQL and RabbitMQ ...\n";
	my $playground = Outbox::Playground->new(dbname => 'bench', schedulers => `nproc` + 0, conf => <<'END');
autovacuum_naptime = 10s
checkpoint_timeout = 1h
max_wal_size = 8GB
END

	$playground->wait_connected;
	$playground->broker->amqp('declare-queue', 'bench', 'classic', 'x-max-length=1000');
	$playground->sql('CREATE EXTENSION pgstattuple');
	return $playground;
}

#
# the contenders: what is enqueued, how many were delivered, where it lies
#

my $payload = "decode(repeat('78', $size), 'hex')";

sub outbox
{
	return {
		playground => new_playground(),
		limit => 1e9,
		enqueue => "SELECT count(outbox.enqueue('', 'bench', payload)) "
		  . "FROM generate_series(1, $batch), (SELECT $payload AS payload OFFSET 0) p",
		delivered => 'SELECT confirmed FROM outbox.worker_status()',
		schema => 'outbox',
		append_only => 'message_%',
	};
}

sub node
{
	my $playground = new_playground();
	my $relay = Bench::Relay->new(name => 'node', playground => $playground, window => 1000, poll_ms => 100);

	$relay->set_up;
	$relay->start;
	return {
		playground => $playground,
		relay => $relay,
		limit => $limit,
		enqueue => "SELECT node.relay_enqueue_many($batch, 'bench', $payload)",
		# to count what is left would be as slow as the relay becomes; these are at most a
		# second old
		delivered => 'SELECT n_tup_del FROM pg_stat_user_tables WHERE relid = \'node.outbox\'::regclass',
		schema => 'node',
		append_only => '-',
	};
}

# Bytes of its tables, bytes of the system catalogs, dead tuples.
sub state_of
{
	my ($session, $it) = @_;
	my %state;

	@state{qw(bytes catalog_bytes dead)} = split /\|/, $session->sql(<<"END");
SELECT sum(pg_total_relation_size(c.oid)) FILTER (WHERE n.nspname = '$it->{schema}'),
	sum(pg_total_relation_size(c.oid)) FILTER (WHERE n.nspname = 'pg_catalog' AND NOT c.relisshared),
	sum(pg_stat_get_dead_tuples(c.oid)) FILTER (WHERE n.nspname = '$it->{schema}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname IN ('$it->{schema}', 'pg_catalog')
END
	return %state;
}

sub dead_tuples
{
	my ($session, $it) = @_;
	my %dead;

	@dead{qw(dead_append_only dead_others)} = split /\|/, $session->sql(<<"END");
SELECT coalesce(sum(dead) FILTER (WHERE append_only), 0), coalesce(sum(dead) FILTER (WHERE NOT append_only), 0)
FROM (SELECT (pgstattuple(oid::regclass)).dead_tuple_count AS dead, relname LIKE '$it->{append_only}' AS append_only
	FROM pg_class WHERE relkind = 'r' AND relnamespace = '$it->{schema}'::regnamespace) t
END
	return %dead;
}

# Delivered at that time, between two samples.
sub delivered_at
{
	my ($time, @samples) = @_;

	for my $i (1 .. $#samples)
	{
		my ($from, $to) = @samples[ $i - 1, $i ];

		return $from->[1] + ($to->[1] - $from->[1]) * ($time - $from->[0]) / ($to->[0] - $from->[0])
		  if $time <= $to->[0];
	}
	return $samples[-1][1];
}

my %kept;    # contenders of which there is something over time

sub measure
{
	my ($name, $it) = @_;
	my $playground = $it->{playground};
	my $session = Bench::Session->new($playground);
	my $holder = Bench::Session->new($playground);
	my ($enqueued, $delivered, $looked, $dead) = (0, 0, 0, 0);
	my @samples = ([ 0, 0 ]);
	my @bytes;
	my $keep = !$kept{$name}++;

	$playground->sql('CHECKPOINT');
	$holder->sql('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$holder->sql('SELECT count(*) FROM pg_class');
	my $start = time();
	my $elapsed = 0;
	while ($delivered < $count && $elapsed < $it->{limit})
	{
		if ($enqueued - $delivered <= $backlog - $batch)
		{
			$session->sql($it->{enqueue});
			$enqueued += $batch;
		}
		else { usleep(5000); }
		$delivered = $session->sql($it->{delivered});
		$elapsed = time() - $start;
		die "the relay has ended:\n" . $it->{relay}->log_tail if $it->{relay} && !$it->{relay}->running;
		die "nothing was delivered in 60 s\n" if $elapsed > 60 && $delivered == 0;
		next if $elapsed < $samples[-1][0] + $interval;

		my %figures = (delivered => $delivered, state_of($session, $it));
		my $tenth = int(10 * max($delivered / $count, $elapsed / $it->{limit}));

		if ($tenth > $looked)
		{
			%figures = (%figures, dead_tuples($session, $it));
			$dead = max($dead, $figures{dead_append_only});
			$looked = $tenth;
		}
		$figures{rate} = ($delivered - $samples[-1][1]) / ($elapsed - $samples[-1][0]);
		push @samples, [ $elapsed, $delivered ];
		push @bytes, $figures{bytes};
		if ($keep)
		{
			$bench->record('over time', $name, sprintf('%.2f', $elapsed), $_, sprintf '%.0f', $figures{$_})
			  for sort keys %figures;
		}
		printf "%6.0f s  %-7s %10s delivered %8s/s %7.1f MB %8s dead  catalogs %.1f MB%s\n", $elapsed, $name,
		  thousands($delivered), thousands(sprintf '%.0f', $figures{rate}), $figures{bytes} / 2**20,
		  thousands($figures{dead}), $figures{catalog_bytes} / 2**20,
		  defined $figures{dead_others} ? "; counted: $figures{dead_append_only} + $figures{dead_others} dead" : '';
	}
	push @samples, [ $elapsed, $delivered ] if $elapsed > $samples[-1][0];
	my %dead = dead_tuples($session, $it);
	my $first = delivered_at($elapsed / 10, @samples) / ($elapsed / 10);
	my $last = ($delivered - delivered_at($elapsed * 0.9, @samples)) / ($elapsed / 10);
	$holder->sql('COMMIT');
	$it->{relay}->stop if $it->{relay};
	return {
		delivered => $delivered,
		seconds => $elapsed,
		first_tenth => $first,
		last_tenth => $last,
		'last / first' => $last / $first,
		MB => maximum(@bytes) / 2**20,
		'dead append-only' => max($dead, $dead{dead_append_only}),
		'dead others' => $dead{dead_others}
	};
}

printf "%s messages of %d bytes, at most %s waiting\n", thousands($count), $size, thousands($backlog);
my %contender = (outbox => \&outbox, node => \&node);
$bench->turns(
	'whole run', $rounds,
	map {
		my $name = $_;
		[ $name => sub { measure($name, $contender{$name}->()) } ]
	} split /,/, $only);
$bench->finish(cases => ['whole run']);
