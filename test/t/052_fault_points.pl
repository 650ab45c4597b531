# Proves that kill -9 before or after any step of a message's path loses nothing,
# invents nothing, keeps the order of each ordering key, and repeats only what was
# not yet recorded.  At each fault point of the sources in turn a process kills
# itself under load, once, and the postmaster restarts the cluster; the messages are
# plain, with ordering keys, scheduled, of transactions committed asynchronously or
# rolled back, unroutable (they end in dead_letter), and behind an unroutable one.
#
# The list of points is taken from the sources; a point that is not reached fails.

use strict;
use warnings FATAL => 'all';

use Cwd qw(abs_path);
use File::Basename;
use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils ();
use Outbox::Broker;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
diag "seed $seed (OUTBOX_TEST_SEED)";
srand($seed);

# How often, at most, a point is passed by before it counts: the more often it is
# passed, the more.  (The part of its name before the first "-".)
my %SKIP = (
	enqueue => 15, commit => 10, message => 60, answer => 60,
	socket => 10, window => 10, gate => 10, record => 2);
my $CLIENTS = 3;

sub fault_points
{
	my $src = abs_path(dirname(__FILE__) . '/../../src');
	my @points;

	for my $file (sort glob "$src/*.c")
	{
		open my $in, '<', $file or die "$file: $!";
		push @points, map { /^\s*OUTBOX_FAULTPOINT\("([^"]+)"\);/ ? $1 : () } <$in>;
		close $in;
	}
	return @points;
}

my @points = $ENV{OUTBOX_TEST_POINTS} ? split(' ', $ENV{OUTBOX_TEST_POINTS}) : fault_points();
cmp_ok(scalar @points, '>', 0, scalar(@points) . ' fault points in the sources');

my $broker = Outbox::Broker->new;
$broker->launch;
my $node = Outbox::Node->create(
	'main',
	uri => $broker->uri,
	faultpoints => 1,
	conf => <<'END_CONF');
# processes are killed, not the machine
fsync = off
# an asynchronous commit stays in memory until somebody flushes it
wal_writer_delay = 10s
wal_writer_flush_after = 0
autovacuum = off
log_checkpoints = off
outbox.max_attempts = 2
outbox.retry_delay_min = '10ms'
outbox.retry_delay_max = '10ms'
outbox.segment_size = '64kB'
END_CONF
$broker->wait_ready;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');

# The truth: an order and its message are of one transaction.
$node->safe_psql('postgres', <<'END_SQL');
CREATE SEQUENCE order_seq;
CREATE TABLE orders (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	kind text NOT NULL,
	key text,
	seq bigint NOT NULL DEFAULT nextval('order_seq'),
	xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE FUNCTION place(kind text, key text DEFAULT NULL, queue text DEFAULT 'orders',
	after interval DEFAULT NULL)
RETURNS uuid LANGUAGE sql AS $$
	WITH placed AS (INSERT INTO orders (kind, key) VALUES (kind, key) RETURNING *)
	SELECT outbox.enqueue('', queue, rpad(kind, 200, '.'), message_id => placed.id,
		ordering_key => placed.key, deliver_at => now() + after)
	FROM placed;
$$;
END_SQL
my $consumer = $broker->start_consumer('orders');

# What the clients run: how often, and what.
my @SCRIPTS = (
	[ 6, "BEGIN; SELECT place('plain'); SELECT place('plain'); COMMIT;" ],
	[ 4, "BEGIN; SELECT place('keyed', 'k' || :client_id); SELECT place('keyed', 'k' || :client_id); COMMIT;" ],
	[ 2, "BEGIN; SELECT place('plain'); SELECT place('keyed', 'k' || :client_id); SELECT place('dead', NULL, 'nowhere'); ROLLBACK;" ],
	[ 1, "BEGIN; SAVEPOINT s; SELECT place('plain'); ROLLBACK TO s; SELECT place('plain'); COMMIT;" ],
	[ 1, "SELECT place('dead', NULL, 'nowhere');" ],
	[ 1, "BEGIN; SELECT place('dead', 'p' || pg_current_xact_id(), 'nowhere'); SELECT place('behind', 'p' || pg_current_xact_id()) FROM generate_series(1, 3); COMMIT;" ],
	[ 1, "SELECT place('later', NULL, 'orders', '50 ms');" ]);
my @files;
for my $i (0 .. $#SCRIPTS)
{
	my $path = PostgreSQL::Test::Utils::tempdir_short() . "/$i.sql";

	open my $out, '>', $path or die "$path: $!";
	print $out map { "$_;\n" } split /; ?/, $SCRIPTS[$i][1];
	close $out;
	push @files, '-f', "$path\@$SCRIPTS[$i][0]";
}

my $loads = 0;

# Between recording and emptying, commits are asynchronous: the crash then takes the
# last of them back, and their messages must not have left.
sub start_load
{
	my ($point) = @_;

	return Outbox::Process->start(
		name => 'pgbench',
		env => { PGOPTIONS => $point =~ /^(?:record|segment)-/ ? '' : '-c synchronous_commit=off' },
		log => "$PostgreSQL::Test::Utils::log_path/load.log",
		command => [
			'pgbench', '-n', '-h', $node->host, '-p', $node->port, '-c', $CLIENTS, '-R', 300,
			'-t', 100, '--random-seed', $seed + $loads++, @files, 'postgres'
		]);
}

# Load until the fault has happened; its time.
sub load_until_fault
{
	my ($point) = @_;
	my $load = start_load($point);
	my $time = eval {
		wait_until(
			"fault point $point to be reached",
			sub {
				$load = start_load($point) unless $load->running;
				# a worker comes and goes only when it is told to
				$node->psql('postgres', 'SELECT outbox.reload()') if $point =~ /^worker-/;
				return $node->fault_time;
			},
			15, 10);
	};

	if (!$time)
	{
		diag $@;
		$load->stop;
		$node->disarm;
		return;
	}
	$load->wait_exit(30);
	$load->stop;
	return $time;
}

# Messages that are set aside and lie after the recorded position as well.
my $BOTH = <<'END_SQL';
WITH p AS (
	SELECT * FROM (TABLE outbox.progress_0 UNION ALL TABLE outbox.progress_1) p ORDER BY number DESC LIMIT 1)
SELECT count(*) FROM (SELECT id, xid FROM outbox.deferred UNION ALL SELECT id, xid FROM outbox.dead_letter) m
	LEFT JOIN p ON true
WHERE pg_visible_in_snapshot(xid, settled_snapshot) IS NOT TRUE
	AND (pg_visible_in_snapshot(xid, window_snapshot) AND id <= last_id) IS NOT TRUE
END_SQL

# Of these arrivals, those whose message was recorded as settled at that time.
sub recorded_before
{
	my ($time, @arrivals) = @_;
	my $values = join ', ', map { "('$_->{message_id}'::uuid, $_->{id})" } @arrivals;

	return 0 unless @arrivals;
	return $node->safe_psql('postgres', <<"END_SQL");
WITH p AS (
	SELECT * FROM (TABLE outbox.progress_0 UNION ALL TABLE outbox.progress_1) p
	WHERE recorded_at < timestamptz 'epoch' + $time * interval '1 us'
	ORDER BY number DESC LIMIT 1)
SELECT count(*) FROM p, orders JOIN (VALUES $values) a (uuid, number) ON a.uuid = orders.id
WHERE pg_visible_in_snapshot(xid, settled_snapshot)
	OR pg_visible_in_snapshot(xid, window_snapshot) AND a.number <= last_id
END_SQL
}

sub orders
{
	my %orders;

	for my $line (split /\n/, $node->safe_psql('postgres', 'SELECT id, kind, key, seq FROM orders'))
	{
		my %order;
		@order{qw(id kind key seq)} = split /\|/, $line;
		$orders{ $order{id} } = \%order;
	}
	return \%orders;
}

my $checked = 0;    # arrivals that belong to earlier points
my $total_duplicates = 0;

sub check_sets
{
	my ($time) = @_;
	my $orders = orders();
	my %dead = map { $_ => 1 }
	  split /\n/, $node->safe_psql('postgres', 'SELECT message_id FROM outbox.dead_letter');
	my @received = $consumer->received;
	my (%seen, %last, @invented, @unroutable, @disorder, @duplicates);

	for my $i (0 .. $#received)
	{
		my $message = $received[$i];
		my $order = $orders->{ $message->{message_id} };

		if (!$order) { push @invented, $message; next; }
		if ($order->{kind} eq 'dead') { push @unroutable, $message; next; }
		if ($seen{ $order->{id} }++)
		{
			push @duplicates, $message
			  if $i >= $checked && !$message->{redelivered} && $order->{kind} =~ /plain|keyed/;
			next;
		}
		next if $order->{key} eq '';
		push @disorder, $message if $order->{seq} < ($last{ $order->{key} } // 0);
		$last{ $order->{key} } = $order->{seq};
	}
	$checked = @received;
	$total_duplicates += @duplicates;
	my @lost = grep { $_->{kind} ne 'dead' && !$seen{ $_->{id} } } values %$orders;
	my @wrongly_dead = grep { !$orders->{$_} || $orders->{$_}{kind} ne 'dead' } keys %dead;
	my @not_dead = grep { $_->{kind} eq 'dead' && !$dead{ $_->{id} } } values %$orders;

	is_deeply([ map { "$_->{kind} $_->{id}" } @lost ], [], 'nothing committed is lost');
	is_deeply(\@invented, [], 'nothing arrived that did not commit');
	is_deeply(\@disorder, [], 'each ordering key in order');
	is_deeply([ map { $_->{id} } @not_dead ], [], 'everything unroutable is in dead_letter');
	is_deeply([ @wrongly_dead, @unroutable ], [], 'and nothing else is');
	is(recorded_before($time, @duplicates),
		0, 'nothing was repeated that had been recorded (' . @duplicates . ' repeated)');
	return;
}

sub kill_at
{
	my ($point) = @_;
	my $skip = int rand(1 + ($SKIP{ $point =~ s/-.*//r } // 0));
	my $start = time();

	$node->arm($point, 'kill', $skip);
	my $time = load_until_fault($point);
	ok($time, "reached, after $skip times") or return;
	my $fault = time() - $start;

	# at once: the next worker would hide it
	$node->wait_for('the server to answer', 'SELECT true', timeout => 30, poll_ms => 5);
	is($node->safe_psql('postgres', $BOTH), 0, 'nothing is set aside that is yet to be sent');
	is($node->safe_psql('postgres', "SELECT count(place('plain')) FROM generate_series(1, 5)"),
		5, 'the server is there again');
	my $drained = eval {
		$node->wait_for('nothing to be left but dead letters', <<'END_SQL', timeout => 30);
SELECT pending = 0 AND deferred = 0 AND in_flight = 0 AND dead =
	(SELECT count(*) FROM orders WHERE kind = 'dead')
FROM outbox.status
END_SQL
	};
	ok($drained, 'nothing is stuck') or diag $@;
	my $routable = $node->safe_psql('postgres', "SELECT count(*) FROM orders WHERE kind <> 'dead'");
	eval { $consumer->wait_distinct($routable, $drained ? 10 : 1) };
	check_sets($time);
	note sprintf '%s: reached after %.1f s, all well after %.1f s', $point, $fault, time() - $start;
	return;
}

my $start = time();
for my $point (@points)
{
	subtest $point => sub { kill_at($point); };
}
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
my $restarts = () = $log =~ /all server processes terminated; reinitializing/g;
is($restarts, scalar @points, 'the cluster was restarted once for each, and for nothing else');
diag sprintf '%d points in %.0f s, %d orders, %d arrivals repeated', scalar @points,
  time() - $start, $node->safe_psql('postgres', 'SELECT count(*) FROM orders'), $total_duplicates;

done_testing();
