# Proves that a broker that does not answer stops nobody: with RabbitMQ frozen in
# mid-stream, with RabbitMQ blocked by a memory alarm under large messages, and with
# a broker whose name no nameserver resolves, transactions commit, DROP DATABASE
# of another database returns, and a fast shutdown is fast.  Afterwards everything
# that committed arrives; also where look-ups of the names of its brokers take longer than
# outbox.connect_timeout.
#
# A worker that sleeps in a call which signals do not interrupt fails each of these:
# DROP DATABASE waits for every process of the cluster to answer a barrier.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils;
use Outbox::Broker;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders sets_ok);
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create('main', broker => $broker);
create_orders($node);
my $consumer = $broker->start_consumer('orders');
my $databases = 0;

# A database to be dropped, made while nothing is in the way.
sub make_database
{
	my $name = 'other' . $databases++;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	return $name;
}

sub seconds
{
	my ($act) = @_;
	my $start = time();

	$act->();
	return time() - $start;
}

# What must go on, whatever the broker does; ends with the server stopped.
sub nothing_is_blocked
{
	my ($name, $database) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM orders');
	my $taken;

	$node->safe_psql('postgres', 'SELECT place_order(1)') for 1 .. 10;
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orders'),
		$before + 10, "$name: transactions commit");

	$taken = seconds(sub { $node->safe_psql('postgres', "DROP DATABASE $database") });
	cmp_ok($taken, '<', 2, sprintf('%s: DROP DATABASE took %.2f s', $name, $taken));

	$node->safe_psql('postgres', 'VACUUM orders; CHECKPOINT');
	$taken = seconds(sub { $node->stop('fast') });
	cmp_ok($taken, '<', 3, sprintf('%s: fast shutdown took %.2f s', $name, $taken));
	return;
}

sub everything_arrives
{
	my ($name) = @_;

	$node->start if !$node->{_pid};
	$node->wait_drained(timeout => 120);
	$consumer->wait_distinct(scalar(my @orders = committed_orders($node)), 60);
	sets_ok([ committed_orders($node) ], [ $consumer->received ],
		$name, duplicates => 100_000);
	return;
}

#
# frozen in mid-stream
#
my $database = make_database();
my $stream = $node->background_psql('postgres');
$stream->query_until(
	qr/streaming/,
	"\\echo streaming\nDO \$\$ BEGIN FOR i IN 1 .. 30000 LOOP PERFORM place_order(2); COMMIT; END LOOP; END \$\$;\n"
);
wait_until('the stream to flow', sub { $consumer->distinct > 1000 });
$broker->sigstop;
# far more than the sockets hold
$node->safe_psql('postgres',
	q{SELECT count(outbox.enqueue('', 'nowhere', repeat('x', 100000), properties => '{"mandatory": false}')) FROM generate_series(1, 200)}
);
$node->wait_for('messages to wait for the frozen broker',
	'SELECT in_flight > 0 AND pending > 100 FROM outbox.status');
$stream->quit;
nothing_is_blocked('frozen', $database);
$node->start;
$node->wait_for('the worker to be looking for the frozen broker',
	q{SELECT state = 'connecting' FROM outbox.status});
$broker->sigcont;
everything_arrives('frozen');

#
# blocked by an alarm
#
$database = make_database();
$broker->set_memory_alarm;
$node->safe_psql('postgres',
	q{SELECT count(outbox.enqueue('', 'nowhere', repeat('x', 100000), properties => '{"mandatory": false}')) FROM generate_series(1, 200)}
);
$node->wait_for('the broker to have blocked us', q{SELECT state = 'blocked' FROM outbox.status});
like($node->value(q{SELECT query FROM pg_stat_activity WHERE backend_type = 'outbox worker'}),
	qr/^blocked/, 'pg_stat_activity says so');
nothing_is_blocked('blocked', $database);
$broker->clear_memory_alarm;
everything_arrives('blocked');

#
# names that cannot be resolved, or not in time
#
SKIP:
{
	skip 'no nameserver of ours here (see ./dev test)', 5 unless $ENV{OUTBOX_NAMESERVER};

	$database = make_database();
	$node->append_conf('postgresql.conf',
		"outbox.uri = 'amqp://guest:guest\@broker.outbox.example:5672/'");
	$node->reload;
	$node->wait_for('the worker to look the name up',
		q{SELECT state = 'connecting' AND broker LIKE 'broker.outbox.example%' FROM outbox.status});
	nothing_is_blocked('unresolvable', $database);
	$node->append_conf('postgresql.conf', "outbox.uri = '" . $broker->uri . "'");
	everything_arrives('unresolvable');

	# Each look-up ends in the middle of the attempt at the other.
	my @slow = map { $broker->uri =~ s/127\.0\.0\.1/slow-$_.outbox.example/r } qw(a b);
	$node->append_conf('postgresql.conf', "outbox.connect_timeout = '500ms'\noutbox.uri = '$slow[0], $slow[1]'");
	$node->reload;
	$node->wait_for('a broker whose name is looked up slowly',
		q{SELECT broker LIKE 'slow-%' AND connected_since IS NOT NULL FROM outbox.status});
	$node->safe_psql('postgres', 'SELECT place_order(1)');
	everything_arrives('looked up slowly');
}

$consumer->stop;
$node->stop;
done_testing();
