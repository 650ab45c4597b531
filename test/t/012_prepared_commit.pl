# Proves that COMMIT PREPARED, from whatever session, wakes the worker by itself:
# the backstop is a minute away.  ROLLBACK PREPARED sends nothing.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Node;

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

done_testing();
