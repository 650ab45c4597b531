# Proves that COMMIT PREPARED, from whatever session, wakes the worker by itself:
# the backstop is a minute away.  ROLLBACK PREPARED sends nothing.  A transaction that
# could be seen while it was being prepared is published once; and COMMIT PREPARED does
# not start a worker that waits after a failure.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils;
use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create('main',
	broker => $broker,
	conf => "outbox.poll_interval = '1min'");
my $consumer = $broker->start_consumer('orders');

my %id = map { $_ => sprintf '00000000-0000-4000-8000-%012d', $_ } 1 .. 4;

sub prepare
{
	my ($n) = @_;

	$node->safe_psql('postgres', <<"END");
BEGIN;
SELECT outbox.enqueue('', 'orders', 'message $n'::text, message_id => '$id{$n}');
PREPARE TRANSACTION 'number $n';
END
	return;
}

prepare(1);
prepare(2);
prepare(3);

# a message that is simply committed shows that the worker has looked
$node->safe_psql('postgres',
	"SELECT outbox.enqueue('', 'orders', 'marker'::text, message_id => '$id{4}')");
$consumer->wait_message($id{4}, 20);
ok(!$consumer->first($id{1}), 'PREPARE TRANSACTION sends nothing');

my $start = time();
$node->safe_psql('postgres', "COMMIT PREPARED 'number 1'");
my $message = $consumer->wait_message($id{1}, 30, 5);
my $took = $message->{at} / 1e6 - $start;
cmp_ok($took, '<', 5, 'COMMIT PREPARED from another session wakes the worker');
diag sprintf 'from COMMIT PREPARED to the consumer, psql start included: %.1f ms', 1000 * $took;

$node->safe_psql('postgres', "ROLLBACK PREPARED 'number 2'");

# a prepared transaction outlives the server
$node->restart;
$node->wait_connected;
$start = time();
$node->safe_psql('postgres', "COMMIT PREPARED 'number 3'");
$message = $consumer->wait_message($id{3}, 30, 5);
cmp_ok($message->{at} / 1e6 - $start, '<', 5, 'also after a restart in between');

$node->wait_drained;
ok(!$consumer->first($id{2}), 'ROLLBACK PREPARED sends nothing');
is(scalar(my @all = $consumer->received), 3, 'each message once');

#
# PREPARE TRANSACTION waits for a standby; so long, two processes have its transaction
#
$node->append_conf('postgresql.conf', <<'END');
wal_level = replica
max_wal_senders = 2
synchronous_standby_names = 'nobody'
synchronous_commit = local
outbox.durability = local
END
$node->restart;
$node->wait_connected;
my $preparing = $node->background_psql('postgres', on_error_stop => 0);
my $twice = $preparing->query_safe(<<'END');
SET synchronous_commit = on;
BEGIN;
SELECT outbox.enqueue('', 'orders', 'twice');
END
$preparing->query_until(qr/preparing/, "\\echo preparing\nPREPARE TRANSACTION 'twice';\n");
$node->wait_for('it to wait for a standby',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'", timeout => 20);

sub publish_marker
{
	my $id = $node->safe_psql('postgres', "SELECT outbox.enqueue('', 'orders', 'marker')");

	$consumer->wait_message($id, 20);
	$node->wait_for('that to be confirmed', 'SELECT in_flight = 0 FROM outbox.status');
	return;
}

publish_marker();
ok(!$consumer->first($twice), 'while it waits its message is not sent');
$node->safe_psql('postgres',
	"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
$node->wait_for('it to be prepared', 'SELECT count(*) = 1 FROM pg_prepared_xacts');
$node->safe_psql('postgres', "COMMIT PREPARED 'twice'");
$consumer->wait_message($twice, 20);
publish_marker();
is(scalar(grep { $_->{body} eq 'twice' } $consumer->received), 1, 'once it has committed, it is sent once');
$preparing->quit;

#
# the worker fails, and waits before it starts again
#
sub failures
{
	return scalar(() = slurp_file($node->logfile) =~ /does not fit the loaded library/g);
}

$node->safe_psql('postgres', 'ALTER TABLE outbox.progress_0 ADD COLUMN more integer');
$node->safe_psql('postgres', "BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'any'; COMMIT PREPARED 'any'")
  for 1 .. 40;
wait_until('the worker to fail', sub { failures() > 0 }, 20);
cmp_ok(failures(), '<', 8, 'a worker that fails is not started anew at each COMMIT PREPARED');
$node->safe_psql('postgres', 'ALTER TABLE outbox.progress_0 DROP COLUMN more');

done_testing();
