# Proves that what arrives is what committed, each message once and each writer's
# messages in its order, with writers that commit at random, roll back one
# transaction in ten, use savepoints and prepare transactions that somebody else
# settles later, while one transaction stays open for the whole run.
#
# And that order follows the commits where one transaction waited for another,
# not the transaction ids.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Load;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders sets_ok);
use Outbox::Wait qw(wait_until);

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
diag "seed $seed (OUTBOX_TEST_SEED)";

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');

# small segments, so that the ring turns during the run
my $node = Outbox::Node->create('main',
	broker => $broker,
	conf => "outbox.segment_size = '1MB'");
create_orders($node);
my $consumer = $broker->start_consumer('orders');

#
# one transaction open for the whole run
#
my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN');
my $open_id = $open->query_safe('SELECT place_order(99)');

my $load = Outbox::Load->new(node => $node, seed => $seed);
my $seconds = $ENV{OUTBOX_TEST_SECONDS} // 15;
my $start = time();
$load->start;
wait_until("writers to have worked for $seconds s", sub { time() - $start > $seconds }, $seconds + 10);
$load->stop;

# everything but the open transaction's own message is delivered while it is open
$node->wait_drained(timeout => 60);
my @committed = committed_orders($node);
# what does not come is named by the comparison below
eval { $consumer->wait_distinct(scalar @committed, 30) };
ok(!$consumer->first($open_id), 'the open transaction has sent nothing');
is($consumer->distinct, scalar @committed, 'and has delayed nobody');
my %orders;
$orders{ $_->{writer} }++ for @committed;
diag join ', ', map { "writer $_: $orders{$_}" } sort keys %orders;

$open->query_safe('COMMIT');
$open->quit;
my $message = $consumer->wait_message($open_id, 20);
ok($message, 'its message arrives after its commit');

$node->wait_drained;
$consumer->wait_quiet(0.5);
my @received = $consumer->received;
@committed = committed_orders($node);
sets_ok(\@committed, \@received, 'four writers');
cmp_ok(scalar(grep { $_->{ordered} eq 'f' } @committed), '>', 0, 'some of it was prepared first');
is($node->status('dead'), 0, 'nothing ended in dead_letter');

#
# Directed: the one that got its transaction id first commits last.  The worker is
# paused, so that both messages are read in one window.
#
$node->safe_psql('postgres', 'CREATE TABLE door (one int); INSERT INTO door VALUES (1)');
$node->safe_psql('postgres', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status");

my $t1 = $node->background_psql('postgres');
my $t2 = $node->background_psql('postgres');
$t1->query_safe('BEGIN');
my $xid1 = $t1->query_safe('SELECT pg_current_xact_id()');
$t2->query_safe('BEGIN');
my $xid2 = $t2->query_safe('SELECT pg_current_xact_id()');
$t2->query_safe('SELECT one FROM door FOR UPDATE');

# T1 asks for the lock while T2 holds it
$t1->{stdin} .= "SELECT one FROM door FOR UPDATE;\nSELECT place_order(98);\n\\echo got it\n";
$t1->{run}->pump_nb;
$node->wait_for('T1 to wait for T2',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
my $second = $t2->query_safe('SELECT place_order(98)');
$t2->query_safe('COMMIT');
$t1->query_until(qr/got it/, "\n");
$t1->query_safe('COMMIT');
$_->quit for $t1, $t2;
cmp_ok($xid1, '<', $xid2, 'T1 has the lower transaction id');

$node->safe_psql('postgres', 'SELECT outbox.resume()');
wait_until('both messages',
	sub { 2 == grep { $_->{body} =~ /"writer": 98\b/ } $consumer->received });
my @directed = map { $_->{message_id} } grep { $_->{body} =~ /"writer": 98\b/ } $consumer->received;
is($directed[0], $second, "T2 committed first, so its message leaves first");

done_testing();
