# Proves that no message reaches the broker for a transaction that is gone after a
# crash.  With synchronous_commit = off a commit is visible long before it is on
# disk; here the WAL writer comes by every 10 s only, and the server is stopped at
# once after the commit, or at the moment its message is seen at the broker.
# Without the durability gate the message would be there and the order would not.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders sets_ok);
use Outbox::Wait qw(wait_until);

my $rounds = $ENV{OUTBOX_TEST_ROUNDS} // 12;
my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
synchronous_commit = off
wal_writer_delay = 10s
wal_writer_flush_after = 0
checkpoint_timeout = 1h
autovacuum = off
log_checkpoints = off
END
create_orders($node);
$node->safe_psql('postgres', 'CHECKPOINT');

# It acknowledges nothing: an early ack would let RabbitMQ confirm early, and the
# worker's own record of that would take the application's commit to disk with it.
my $consumer = $broker->start_consumer('orders', options => ['--never-ack']);

# One order, then an immediate stop, once `moment` has returned.  Returns the id
# and whether the order survived.
sub order_and_crash
{
	my ($moment) = @_;
	my $session = $node->background_psql('postgres');
	my $postmaster = $node->{_pid};
	my $id = $session->query_safe('SELECT place_order(1)');

	$moment->($id);
	kill 'QUIT', $postmaster;
	wait_until('the server to be gone',
		sub { !-e $node->data_dir . '/postmaster.pid' }, 30, 10);
	eval { $session->quit };
	$node->{_pid} = undef;
	$node->start;
	return ($id,
		$node->safe_psql('postgres', "SELECT count(*) FROM orders WHERE id = '$id'"));
}

# First, that a commit is lost at all in such a crash when nobody publishes it.
$node->safe_psql('postgres', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
my ($lost, $survived) = order_and_crash(sub { });
is($survived, 0, 'with the worker paused, the commit is lost in the crash');
$node->safe_psql('postgres', 'SELECT outbox.resume()');
$node->wait_connected(timeout => 60);

my ($kept, $gone) = (0, 0);
for my $round (1 .. $rounds)
{
	# at once, or when the message is seen, but no later than the WAL writer wakes
	(my $id, $survived) = order_and_crash(
		$round % 2
		? sub { eval { $consumer->wait_message($_[0], 3, 1) } }
		: sub { });
	$node->wait_connected(timeout => 60);
	$node->wait_drained(timeout => 60);
	$survived ? $kept++ : $gone++;
	note "round $round: message " . ($consumer->first($id) ? 'seen' : 'not seen')
	  . ', order ' . ($survived ? 'kept' : 'gone');
}
diag "$rounds immediate stops: $kept orders kept, $gone gone";

$node->safe_psql('postgres', 'SET synchronous_commit = on; SELECT place_order(1)');
$node->wait_drained;
my @committed = committed_orders($node);
$consumer->wait_distinct(scalar @committed, 20);
$consumer->wait_quiet(0.5);

# A crash before the record of a confirm repeats the message: at most one each.
sets_ok(\@committed, [ $consumer->received ], 'asynchronous commits', duplicates => $rounds);
ok(!$consumer->first($lost), 'and the message of the lost commit never arrived');

done_testing();
