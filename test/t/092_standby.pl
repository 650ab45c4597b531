# Proves that a message waits for the synchronous standby even if its commit did
# not (synchronous_commit = local), that nothing else waits meanwhile, and that
# outbox.durability = local waits for nobody; that a standby refuses enqueue() and
# answers outbox.status; and that a promoted standby publishes by itself what was
# pending, and no more than that.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->launch;    # takes its time; the servers meanwhile
my $primary = Outbox::Node->create('primary', broker => $broker, streaming => 1, extension => 0);
$primary->backup('base');
my $standby = bless PostgreSQL::Test::Cluster->new('standby'), 'Outbox::Node';
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$broker->wait_ready;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $consumer = $broker->start_consumer('orders');

sub wait_standby
{
	return $primary->wait_for('the standby to be a synchronous one',
		"SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'",
		timeout => 30);
}

# Commit a message, waiting for no standby.
sub enqueue
{
	my ($body, $synchronous_commit) = @_;
	$synchronous_commit //= 'local';

	return (split /\n/, $primary->safe_psql('postgres', <<"END"))[0];
SET synchronous_commit = '$synchronous_commit';
SELECT outbox.enqueue('', 'orders', '$body'::text);
END
}

sub wait_state
{
	my ($state, %args) = @_;

	return $primary->wait_for("state \"$state\"", "SELECT state = '$state' FROM outbox.status",
		timeout => 20, %args);
}

# SIGSTOP: the connection stays, and says nothing.
my $walreceiver;

sub freeze_standby
{
	$walreceiver = $standby->value('SELECT pid FROM pg_stat_wal_receiver')
	  or die 'the standby has no walreceiver';
	kill 'STOP', $walreceiver or die "kill: $!";
	wait_until(
		"walreceiver $walreceiver to stand still",
		sub {
			open my $in, '<', "/proc/$walreceiver/stat" or die "$walreceiver: $!";
			return <$in> =~ /\) T /;
		},
		10, 10);
	return;
}

sub thaw_standby
{
	kill 'CONT', $walreceiver if $walreceiver;
	undef $walreceiver;
	return;
}

END { thaw_standby(); }

$primary->safe_psql('postgres', 'CREATE EXTENSION outbox');
$primary->wait_connected;
$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
$primary->reload;
wait_standby();
my $first = enqueue('with the standby', 'on');
ok($consumer->wait_message($first, 20), 'with its standby there, a message arrives');
$primary->wait_drained;

#
# the standby stands still
#
$primary->safe_psql('postgres', 'CREATE DATABASE other');
$primary->safe_psql('other', 'CREATE EXTENSION outbox');
$primary->wait_connected(dbname => 'other');
freeze_standby();
# The turn in which the worker hears of it also looks for messages.
$primary->safe_psql('postgres', 'SET synchronous_commit = local; SELECT outbox.pause()');
wait_state('paused');
$primary->safe_psql('postgres', 'SET synchronous_commit = local; SELECT outbox.resume()');
my $state;
wait_until('the worker to go on', sub { ($state = $primary->status('state')) ne 'paused' }, 20, 10);
is($state, 'idle', 'a worker that has nothing to publish waits for no standby');
my $id = enqueue('standby frozen');
$primary->safe_psql('other', <<'END');
SET synchronous_commit = local;
SELECT outbox.enqueue('', 'orders', 'never');
END
wait_state('waiting for standby');
wait_state('waiting for standby', dbname => 'other');
is($primary->status('pending'), 1, 'the message is pending');
$consumer->wait_quiet(1);
ok(!$consumer->first($id), 'and not at the broker while the standby does not have it');

my $start = time();
$primary->safe_psql('postgres', 'SET synchronous_commit = local; DROP DATABASE other');
my $took = time() - $start;
cmp_ok($took, '<', 2, 'DROP DATABASE of another database, whose worker waits too, works');
diag sprintf 'DROP DATABASE: %.2f s', $took;

$start = time();
my $later = enqueue('standby still frozen');
cmp_ok(time() - $start, '<', 2, 'commits that do not wait go on');

thaw_standby();
$consumer->wait_message($_, 20) for $id, $later;
pass('when the standby goes on, the messages arrive');
$primary->wait_drained;

#
# outbox.durability = local
#
freeze_standby();
$id = enqueue('for this server only');
wait_state('waiting for standby');
ok(!$consumer->first($id), 'the same again');
$primary->safe_psql('postgres', <<'END');
SET synchronous_commit = local;
ALTER DATABASE postgres SET outbox.durability = local;
SELECT outbox.reload();
END
ok($consumer->wait_message($id, 20), 'with outbox.durability = local it is not waited for');
$later = enqueue('for this server only, too');
ok($consumer->wait_message($later, 20), 'and no more');
$primary->wait_drained;
$primary->safe_psql('postgres', <<'END');
SET synchronous_commit = local;
ALTER DATABASE postgres RESET outbox.durability;
SELECT outbox.reload();
END
thaw_standby();
wait_standby();

#
# the primary is stopped while its worker waits for a standby that is gone
#
$primary->wait_for_catchup($standby);
$standby->stop;
$id = enqueue('standby gone');
wait_state('waiting for standby');
$primary->safe_psql('postgres', 'CHECKPOINT');
$start = time();
$primary->stop('fast');
$took = time() - $start;
cmp_ok($took, '<', 3, 'a fast stop of a server whose worker waits for a standby');
diag sprintf 'pg_ctl stop -m fast: %.2f s', $took;
$primary->start;
wait_state('waiting for standby');
$consumer->wait_quiet(1);
ok(!$consumer->first($id), 'after a restart it still waits');
$standby->start;
ok($consumer->wait_message($id, 30), 'until the standby is back');
$primary->wait_drained;

#
# on the standby
#
wait_standby();
$primary->wait_for_catchup($standby);
my ($out, $err) = ('', '');
my $rc = $standby->psql('postgres', "SELECT outbox.enqueue('', 'orders', 'on the standby')",
	stdout => \$out, stderr => \$err);
isnt($rc, 0, 'on the standby enqueue() is refused');
like($err, qr/cannot execute outbox\.enqueue\(\) during recovery/, 'with a clear error');
is($standby->value("SELECT state || ' ' || coalesce(pending::text, 'NULL') || ' ' || deferred FROM outbox.status"),
	'stopped NULL 0', 'outbox.status answers');
is($standby->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'"),
	0, 'nothing of outbox runs there');

#
# promotion, with messages that the primary has committed and not published
#
my @delivered = map { $_->{message_id} } $consumer->received;
$primary->safe_psql('postgres', 'ALTER SYSTEM SET outbox.enabled = off');
$primary->reload;
wait_state('disabled');
my @pending = map { enqueue("pending $_", 'on') } 1 .. 20;
is($primary->status('pending'), 20, 'messages are pending on the primary');
$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$start = time();
$standby->promote;
$consumer->wait_message($_, 30) for @pending;
diag sprintf 'from promotion to the last of 20 pending messages, pg_ctl included: %.2f s', time() - $start;
$standby->wait_drained(timeout => 20);
$consumer->wait_quiet(0.5);
my @after = map { $_->{message_id} } $consumer->received;
is_deeply([ @after[ $#delivered + 1 .. $#after ] ], \@pending,
	'the promoted standby publishes them, in order, and nothing else');
$id = $standby->safe_psql('postgres', "SELECT outbox.enqueue('', 'orders', 'after promotion')");
ok($consumer->wait_message($id, 20), 'and what is enqueued there');

done_testing();
