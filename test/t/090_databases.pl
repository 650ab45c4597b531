# Proves that workers come and go with databases: CREATE EXTENSION in an existing
# database is all it takes to get one; DROP, RENAME, SET TABLESPACE and CREATE ...
# TEMPLATE work on a database with a worker, which comes back where the database
# is still there; a clone does not publish its original's messages; and a worker or
# a launcher that is terminated comes back.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
# An autovacuum worker that happens to be in a database makes DROP ... WITH (FORCE) fail
# for an owner who is no superuser; that is core's, and not what is tested here.
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	extension => 0,
	faultpoints => 1,
	conf => 'autovacuum = off');
my $consumer = $broker->start_consumer('orders');
my $number = 0;

# Enqueue in a database and wait until it has arrived.
sub publishes
{
	my ($dbname, $name) = @_;
	my $body = "$dbname " . ++$number;
	my $id = $node->safe_psql($dbname, "SELECT outbox.enqueue('', 'orders', '$body'::text)");
	my $start = time();
	my $message = eval { $consumer->wait_message($id, 20, 5) };

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($message && $message->{body}, $body, $name)
	  or diag "status of $dbname: " . ($node->value('SELECT s FROM outbox.status s', $dbname) // '');
	note sprintf '%s: %.2f s', $name, time() - $start;
	return;
}

# Run a command that must work, and soon.
sub quick
{
	my ($sql, $name, %args) = @_;
	my $limit = $args{limit} // 3;
	my $start = time();
	my ($out, $err) = ('', '');
	my $rc = $node->psql('postgres', $sql, stdout => \$out, stderr => \$err,
		extra_params => [ '-U', $args{user} // $ENV{PGUSER} // getpwuid($<) ]);
	my $took = time() - $start;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($rc, 0, "$name works") or diag $err;
	cmp_ok($took, '<', $limit, "within $limit s");
	diag sprintf '%s: %.2f s', $name, $took;
	return;
}

sub has_worker
{
	my ($dbname) = @_;

	return $node->value(<<"END");
SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'outbox worker' AND datname = '$dbname'
END
}

sub launcher_pid
{
	return $node->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'outbox launcher'");
}

#
# CREATE EXTENSION in databases that are there
#
my @databases = qw(shop stock drop force leaving starting);
$node->safe_psql('postgres', 'CREATE ROLE owner LOGIN');
$node->safe_psql('postgres', "CREATE DATABASE \"$_\"") for @databases;
$node->safe_psql('postgres', "ALTER DATABASE \"$_\" OWNER TO owner") for qw(force leaving starting);

# the launcher has long looked at those that have no extension
$node->wait_for('the launcher to be there',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'outbox launcher'");

# In the same transaction as CREATE EXTENSION, a message.
for my $dbname (@databases)
{
	my ($id, $created) = split /\n/, $node->safe_psql($dbname, <<"END");
BEGIN;
CREATE EXTENSION outbox;
SELECT outbox.enqueue('', 'orders', 'with the extension'::text);
COMMIT;
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
END
	$node->wait_connected(dbname => $dbname, timeout => 5, poll_ms => 10);
	my $took = $node->status('(extract(epoch FROM connected_since) * 1000)::bigint', $dbname) - $created;
	diag sprintf 'CREATE EXTENSION in %s: worker connected after %d ms', $dbname, $took;
	cmp_ok($took, '<', 5000, "$dbname: connected soon after CREATE EXTENSION");
	is(eval { $consumer->wait_message($id, 10, 5)->{body} }, 'with the extension',
		"$dbname: a message of the same transaction arrives");
}
publishes($_, "$_ publishes while others do") for @databases;
is($node->value("SELECT count(DISTINCT datname) FROM pg_stat_activity WHERE backend_type = 'outbox worker'"),
	scalar @databases, 'one worker for each');

#
# DROP DATABASE
#
quick('DROP DATABASE drop', 'DROP DATABASE');

# FORCE may end sessions of the owner only; the worker is not one of them
my $session = $node->background_psql('force', extra_params => [ '-U', 'owner' ], on_error_stop => 0);
$session->query_safe('SELECT 1');
quick('DROP DATABASE force WITH (FORCE)', 'DROP DATABASE WITH (FORCE) by an owner', user => 'owner');
eval { $session->quit };

# ... nor when it takes its time to leave, or has just connected
$node->arm('worker-detached', 'wait');
quick('DROP DATABASE leaving WITH (FORCE)', 'DROP ... WITH (FORCE) while the worker leaves',
	user => 'owner');
cmp_ok($node->fault_time, '>', 0, 'the worker took its time');
$node->arm('worker-connected', 'wait');
$node->safe_psql('starting', 'SELECT outbox.reload()');
wait_until('a worker to be connected', sub { $node->fault_time }, 10, 5);
quick('DROP DATABASE starting WITH (FORCE)', 'DROP ... WITH (FORCE) while the worker starts',
	user => 'owner');

# ... one that fails, since somebody is connected; it waits 5 s for them to go
$session = $node->background_psql('shop');
$session->query_safe('SELECT 1');
my $shop_pid = $node->worker_pid('shop');
my ($out, $err) = ('', '');
my $rc = $node->psql('postgres', 'DROP DATABASE shop', stdout => \$out, stderr => \$err);
isnt($rc, 0, 'DROP DATABASE fails while somebody is connected');
like($err, qr/is being accessed by other users.*There is 1 other session/s,
	'to somebody who is not the worker');
publishes('shop', 'afterwards its worker is back');
isnt($node->worker_pid('shop'), $shop_pid, 'having left for the attempt');
$session->quit;

# ... and of somebody who may not do it
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
$shop_pid = $node->worker_pid('shop');
for my $sql ('DROP DATABASE shop', 'DROP DATABASE shop WITH (FORCE)',
	'ALTER DATABASE shop RENAME TO mine', 'ALTER DATABASE shop SET TABLESPACE pg_default',
	'CREATE DATABASE mine TEMPLATE shop')
{
	$rc = $node->psql('postgres', $sql, stdout => \$out, stderr => \$err,
		extra_params => [ '-U', 'nobody' ]);
	like($err, qr/must be owner|permission denied/, "$sql is refused to somebody without the right");
	publishes('shop', 'the worker publishes');
	is($node->worker_pid('shop'), $shop_pid, 'and has not been disturbed');
}

#
# RENAME and SET TABLESPACE
#
quick('ALTER DATABASE shop RENAME TO store', 'RENAME');
publishes('store', 'after RENAME the worker is back');

# ... twice in a transaction: the worker that comes in between waits for its lock
my $swap = $node->background_psql('postgres');
$swap->query_safe('BEGIN; ALTER DATABASE store RENAME TO depot');
$node->wait_for('a worker to wait for the lock', <<'END');
SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND classid = 'pg_database'::regclass
END
my $swap_start = time();
$swap->query_safe('ALTER DATABASE depot RENAME TO store; COMMIT');
cmp_ok(time() - $swap_start, '<', 3, 'RENAME again in the same transaction, within 3 s');
$swap->quit;
publishes('store', 'and the worker is back');
is($node->status('database', 'store'), 'store', 'and knows the new name');

$node->safe_psql('postgres', <<'END');
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE elsewhere LOCATION '';
END
quick('ALTER DATABASE store SET TABLESPACE elsewhere', 'SET TABLESPACE', limit => 5);
publishes('store', 'after SET TABLESPACE the worker is back');
$node->safe_psql('postgres', 'ALTER DATABASE store SET TABLESPACE pg_default');

#
# a clone, made while messages wait in the original
#
$node->wait_drained(dbname => 'store');
$node->safe_psql('store', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status",
	dbname => 'store');
my @waiting = split /\n/, $node->safe_psql('store',
	q{SELECT outbox.enqueue('', 'orders', 'waiting') FROM generate_series(1, 5)});
is(has_worker('store'), 't', 'the original has a worker');
quick('CREATE DATABASE clone TEMPLATE store', 'CREATE DATABASE ... TEMPLATE', limit => 5);

# A pause is copied too; what is to hold the clone back is that it is one.
$node->safe_psql('clone', 'SELECT outbox.resume()');
$node->wait_for('the worker of the clone to be there', "SELECT worker_pid IS NOT NULL FROM outbox.status",
	dbname => 'clone', timeout => 20);

#
# the launcher is terminated: another one comes
#
my %pid = map { $_ => $node->worker_pid($_) } qw(stock store clone);
my $launcher = launcher_pid();
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
$node->wait_for('another launcher',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'outbox launcher' AND pid <> $launcher",
	timeout => 20);
is_deeply({ map { $_ => $node->worker_pid($_) } qw(stock store clone) }, \%pid,
	'the workers do not care that the launcher was terminated');
publishes('stock', 'and publish');

my $cloned = $node->safe_psql('clone', q{SELECT outbox.enqueue('', 'orders', 'clone')});
$node->safe_psql('clone', 'SELECT outbox.pause(); SELECT outbox.resume()');
$consumer->wait_quiet(1);
$node->wait_for('the clone to be paused', "SELECT state = 'paused' FROM outbox.status",
	dbname => 'clone', timeout => 20);
pass('a clone with messages is paused');
is($node->status('pending', 'clone'), 6, 'it keeps them');
is($node->status('confirmed', 'clone'), 0, 'and publishes nothing');
ok(!(grep { $consumer->first($_) } @waiting, $cloned), 'so nothing arrives');

$node->safe_psql('store', 'SELECT outbox.resume()');
$consumer->wait_message($_, 20) for @waiting;
$node->wait_drained(dbname => 'store');
$consumer->wait_quiet(0.5);
is(scalar(grep { $_->{body} eq 'waiting' } $consumer->received), 5,
	'the original publishes them, each once');
ok(!$consumer->first($cloned), 'and not that of the clone');

#
# a worker is terminated
#
$node->wait_drained(dbname => 'stock');
my $arrivals = (() = $consumer->received);
my $confirmed = $node->status('confirmed', 'stock');
my $pid = $node->worker_pid('stock');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$node->wait_for('another worker', "SELECT worker_pid <> $pid FROM outbox.status", dbname => 'stock');
publishes('stock', 'a worker that was terminated comes back');
$consumer->wait_quiet(0.5);
is((() = $consumer->received), $arrivals + 1, 'and repeats nothing of what was confirmed');

# in mid-stream, and again: each that was not confirmed may come twice
$pid = $node->worker_pid('stock');
my $count = 20_000;
my $before = $consumer->distinct;
$node->safe_psql('stock',
	"SELECT count(outbox.enqueue('', 'orders', 'stream ' || n)) FROM generate_series(1, $count) n");
for my $turn (1 .. 3)
{
	my $goal = $before + $turn * 1000;

	wait_until('messages to flow', sub { $consumer->distinct >= $goal }, 20, 5);
	wait_until('another worker', sub {
			my $now = $node->worker_pid('stock') // $pid;
			return $now != $pid && ($pid = $now);
		}, 20, 10) if $turn > 1;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
}
$node->wait_drained(dbname => 'stock');
$consumer->wait_distinct($before + $count, 20);
$consumer->wait_quiet(0.5);
my %seen;
my @stream = map { $_->{body} =~ /^stream (\d+)$/ ? $1 : () } $consumer->received;
my @first = grep { !$seen{$_}++ } @stream;
is_deeply(\@first, [ 1 .. $count ], 'terminated three times in mid-stream: nothing lost, in order');
is($node->status('confirmed', 'stock') - $confirmed, $count + 1,
	'and nothing confirmed was sent again');
diag scalar(@stream) . " arrivals of $count messages, worker terminated three times";

# worker and launcher together: nobody is there to start the worker at once
$launcher = launcher_pid();
$pid = $node->worker_pid('stock');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(p) FROM unnest('{$launcher, $pid}'::int[]) p");
publishes('stock', 'worker and launcher terminated together come back');

#
# a database that is a template for a while
#
$node->wait_drained(dbname => 'stock');
$node->safe_psql('postgres', 'ALTER DATABASE stock IS_TEMPLATE true');
wait_until(
	'a template to have no worker',
	sub { $node->psql('stock', 'SELECT outbox.reload()', stderr => \my $ignored) != 0 },
	20);
$node->safe_psql('postgres', 'ALTER DATABASE stock IS_TEMPLATE false');
# which has the launcher look for databases, as it does each minute
$node->safe_psql('postgres', 'CREATE DATABASE reason');
publishes('stock', 'a database that is no template any more has a worker again');

#
# DROP EXTENSION
#
$node->wait_drained(dbname => 'stock');
$node->safe_psql('stock', 'DROP EXTENSION outbox');
wait_until('the worker to leave', sub { has_worker('stock') eq 'f' }, 10, 20);
pass('DROP EXTENSION makes the worker leave');
$node->safe_psql('stock', 'CREATE EXTENSION outbox');
publishes('stock', 'CREATE EXTENSION brings it back');

done_testing();
