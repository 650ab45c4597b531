# Proves that a broker which is there but confirms nothing does not hold messages for
# ever: after outbox.confirm_timeout the connection is given up and what is unconfirmed
# is set aside, tried now and then, and sent again with the same message_id.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => "outbox.confirm_timeout = '1500ms'");

# The process of the queue: while it is suspended, the broker talks, and does not confirm.
sub queue_process
{
	my ($act) = @_;

	$broker->eval_erlang("begin {ok, Q} = rabbit_amqqueue:lookup({resource, <<\"/\">>, queue, <<\"orders\">>}), sys:$act(amqqueue:get_pid(Q)) end");
	return;
}

$node->safe_psql('postgres', q{SELECT outbox.enqueue('', 'orders', 'before'::text)});
$node->wait_drained;
my $since = $node->status('connected_since');

queue_process('suspend');
$node->safe_psql('postgres',
	q{SELECT outbox.enqueue('', 'orders', i::text) FROM generate_series(1, 20) i});
$node->wait_for('the connection to be given up',
	q{SELECT last_error LIKE '%the oldest of 20 messages in flight has not been confirmed for 1 s%' FROM outbox.status});
$node->wait_for('the messages to be set aside',
	q{SELECT (reason, exchange, routing_key, messages) = ('stalled', '', 'orders', 20)
		AND last_error LIKE 'not confirmed by RabbitMQ within 1 s' FROM outbox.unavailable});
is($node->status('state'), 'idle', 'the worker is free for others');
queue_process('resume');
$node->wait_drained;
is($node->value('SELECT count(*) FROM outbox.unavailable'), 0, 'nothing is unavailable any more');
isnt($node->status('connected_since'), $since, 'there is another connection');

my $consumer = $broker->start_consumer('orders');
$consumer->wait_distinct(21);
my %copies;
$copies{ $_->{body} }++ for $consumer->received;
is(scalar keys %copies, 21, 'every message has arrived');
is($copies{before}, 1, 'the one that was confirmed before, once');

# Nothing in flight, no answer owed.
$since = $node->status('connected_since');
$node->safe_psql('postgres', 'SELECT pg_sleep(3)');
is($node->status('connected_since'), $since, 'an idle connection stays');

$consumer->stop;
$node->stop;
done_testing();
