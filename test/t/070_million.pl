# Proves that a million messages which wait for a broker are no burden: the first
# leaves within seconds of its return, the worker's own memory stays small, order is
# kept; and that publishing them leaves no bloat while another session holds a
# snapshot all the time: no dead tuple in any segment, the segments are emptied,
# the progress tables stay as small as they were.  And that of large messages the
# worker has in memory what goes to the socket next, not all that may be in flight.
#
# OUTBOX_TEST_MESSAGES sets another number.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $count = $ENV{OUTBOX_TEST_MESSAGES} // 1_000_000;
my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.segment_size = '32MB'
max_wal_size = 4GB
END
$node->safe_psql('postgres', 'CREATE EXTENSION pgstattuple');

# From shared memory only: outbox.status would count the backlog each time.
sub worker
{
	my ($column) = @_;

	return $node->value("SELECT $column FROM outbox.worker_status()");
}

# kB of the worker's own memory
sub worker_memory
{
	my $pid = worker('worker_pid') or return 0;

	open my $in, '<', "/proc/$pid/status" or return 0;
	my ($kb) = map { /^RssAnon:\s+(\d+)/ ? $1 : () } <$in>;
	close $in;
	return $kb // 0;
}

sub sum_over_segments
{
	my ($expression) = @_;

	return $node->safe_psql('postgres',
		"SELECT sum($expression) FROM unnest(ARRAY['outbox.message_0', 'outbox.message_1',"
		  . " 'outbox.message_2', 'outbox.message_3']::regclass[]) AS s");
}

$broker->stop;
# In runs, so that segments change in between.
my $per_run = $count / 10;
for my $run (1 .. 10)
{
	$node->safe_psql('postgres',
		"SELECT count(outbox.enqueue('', 'orders', (($run - 1) * $per_run + i)::text)) FROM generate_series(1, $per_run) i"
	);
}
is($node->status('pending'), $count, "$count messages are waiting");

my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.status');

$broker->start;
my $returned = time();
wait_until('the first message to be confirmed', sub { worker('confirmed') > 0 }, 30, 20);
my $taken = time() - $returned;
cmp_ok($taken, '<', 5, sprintf('the first message left %.2f s after the broker returned', $taken));

my $consumer = $broker->start_consumer('orders', options => ['--prefetch', '2000']);
my $memory = 0;
wait_until(
	'all messages to be confirmed',
	sub {
		my $now = worker_memory();
		$memory = $now if $now > $memory;
		return worker('confirmed') >= $count;
	},
	600, 500);
cmp_ok($memory, '<', 100 * 1024, "the worker's own memory stayed at $memory kB");

# Emptied while the snapshot is still held: what is left is the segment that is open.
$node->wait_for(
	'the segments to be emptied',
	q{SELECT count(*) FILTER (WHERE pg_relation_size(s) > 0) <= 1
		FROM unnest(ARRAY['outbox.message_0', 'outbox.message_1', 'outbox.message_2', 'outbox.message_3']::regclass[]) AS s}
);
is($holder->query_safe('SELECT 1'), '1', 'the snapshot is still held');
is(sum_over_segments('(pgstattuple(s)).dead_tuple_count'), 0, 'no dead tuple in any segment');
cmp_ok(
	$node->safe_psql('postgres',
		q{SELECT pg_total_relation_size('outbox.progress_0') + pg_total_relation_size('outbox.progress_1')}),
	'<', 1024 * 1024, 'the progress tables are small');
$holder->quit;

$consumer->wait_distinct($count, 300);
my $number = 0;
my $disorder = 0;
for my $message ($consumer->received)
{
	$disorder++ if $message->{body} != ++$number;
}
is($disorder, 0, 'each message once, in order');
is($number, $count, 'all of them');

# Of a broker that hangs, the socket takes some megabytes, and then no more.
my $large = 1000;
$node->append_conf('postgresql.conf', "outbox.in_flight_bytes = '64MB'");
$node->reload;
$node->wait_drained;
my $before = worker_memory();
my $in_flight = 0;
$broker->sigstop;
$node->safe_psql('postgres',
	"SELECT count(outbox.enqueue('', 'orders', repeat(i::text, 16000))) FROM generate_series(10000, 9999 + $large) i");
wait_until(
	'the socket to be full',
	sub {
		my $last = $in_flight;

		$in_flight = worker('in_flight');
		return $in_flight > 0 && $in_flight == $last;
	},
	30, 1000);
$memory = worker_memory() - $before;
cmp_ok($memory, '<', 16 * 1024, "80 kB each, $in_flight in flight: $memory kB more than before");
$broker->sigcont;
$consumer->wait_distinct($count + $large, 60);

$consumer->stop;
$node->stop;
done_testing();
