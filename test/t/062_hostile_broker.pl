# Proves that a peer that sends garbage, odd frames and lies, or nothing at all, does
# the server no harm: the worker leaves it and tries again, it is the same process
# all the time, and once outbox.uri leads to RabbitMQ everything arrives.
#
# What exactly the peer does is decided by a seed; test/fuzz does the same ten
# thousand times, without a server.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time usleep);

use PostgreSQL::Test::Utils;
use Outbox::Broker;
use Outbox::HostilePeer;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
my $conversations = $ENV{OUTBOX_TEST_CONVERSATIONS} // 46;
diag "seed $seed (OUTBOX_TEST_SEED), $conversations conversations (OUTBOX_TEST_CONVERSATIONS)";
my $messages = 30;

my $broker = Outbox::Broker->new;
$broker->launch;
my $port = Outbox::Broker->free_port;
my $peer = Outbox::HostilePeer->start(
	port => $port,
	seed => $seed,
	log => $broker->dir . '/hostile.log');
my $node = Outbox::Node->create(
	'main',
	uri => "amqp://guest:guest\@127.0.0.1:$port/",
	conf => <<'END');
outbox.connect_timeout = '500ms'
outbox.confirm_timeout = '1s'
outbox.heartbeat = '1s'
END
my $started = $node->value('SELECT pg_postmaster_start_time()');

$node->safe_psql('postgres',
	"SELECT outbox.enqueue('', 'orders', 'm' || i || '.') FROM generate_series(1, $messages) i");
$node->wait_for('a worker', 'SELECT worker_pid IS NOT NULL FROM outbox.status');
my $worker = $node->worker_pid;

# A reload makes the worker try again at once; a connection that it has stays.
my $limit = time() + 60;
my @acts;
while ((@acts = $peer->acts) < $conversations && time() < $limit)
{
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	usleep(100_000);
}
cmp_ok(scalar @acts, '>=', $conversations, 'the worker comes back after each conversation');
ok($peer->running, 'to a peer that is there');
is($node->worker_pid, $worker, 'it is the same process as before');
my @struck = grep { !/gone before/ } @acts;
cmp_ok(scalar @struck, '>=', @acts / 2, 'and the peer had its way with most of them');
note $_ for @acts;
my $last_error = $node->status('last_error');
like($last_error, qr/RabbitMQ at "127\.0\.0\.1:$port"/, "outbox.status says: $last_error");

$broker->wait_ready;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
$node->append_conf('postgresql.conf', <<"END");
outbox.uri = '@{[ $broker->uri ]}'
outbox.connect_timeout = '5s'
outbox.confirm_timeout = '60s'
outbox.heartbeat = '15s'
END
$node->reload;
$node->wait_drained;
my $consumer = $broker->start_consumer('orders');

# What the peer confirmed in order it has.
@acts = $peer->acts;
my %taken = map { /\{(.*)\}/ ? ($1 => 1) : () } @acts;
my @expected = grep { !$taken{$_} } map { "m$_." } 1 .. $messages;
$consumer->wait_distinct(scalar @expected);
my %arrived = map { $_->{body} => 1 } $consumer->received;
is_deeply([ grep { !$arrived{$_} } @expected ], [], 'everything arrives that the peer did not confirm');
cmp_ok(scalar keys %taken, '<', $messages / 2, 'which are most');
is($node->status('dead'), 0, 'nothing was given up');

is($node->worker_pid, $worker, 'by the same worker');
is($node->value('SELECT pg_postmaster_start_time()'), $started, 'in a server that never restarted');
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|TRAP/, 'and in which nothing crashed');

$peer->stop;
$consumer->stop;
$node->stop;
done_testing();
