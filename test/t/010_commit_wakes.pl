# Proves that a COMMIT makes the worker publish at once, that what is rolled back
# is never published, and that a message arrives with the properties and headers
# it was given.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
diag sprintf 'RabbitMQ started in %.1f s', $broker->start;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders properties);
$broker->amqp('declare-exchange', 'shop', 'topic');
$broker->amqp('bind', 'properties', 'shop', 'order.*');

# the backstop is too far away to help
my $node = Outbox::Node->create('main',
	broker => $broker,
	conf => "outbox.poll_interval = '1min'");
my $consumer = $broker->start_consumer('orders');

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return $sorted[ $#sorted / 2 ];
}

#
# a committed message arrives, and soon
#
$node->safe_psql('postgres',
	q{SELECT outbox.enqueue('', 'orders', 'first'::text, message_id => '00000000-0000-4000-8000-000000000001')});
my $first = $consumer->wait_message('00000000-0000-4000-8000-000000000001', 20);
is($first->{body}, 'first', 'a committed message arrives');
is($first->{redelivered}, 0, 'once');

# One at a time, each in a transaction of its own: a client that takes note when
# it sends COMMIT and when COMMIT has returned.
my $count = 200;
my $script = join '', map { <<"END" } 1 .. $count;
BEGIN;
SELECT outbox.enqueue('', 'orders', '{"n": $_}'::jsonb) AS id \\gset
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS sent \\gset
COMMIT;
SELECT :'id', :sent, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_sleep(0.01);
END
my (@from_sent, @from_returned, @commit);
for my $line (split /\n/, $node->safe_psql('postgres', $script))
{
	my ($id, $sent, $returned) = split /\|/, $line;
	my $message = $consumer->wait_message($id, 20);

	push @from_sent, ($message->{at} - $sent) / 1000;
	push @from_returned, ($message->{at} - $returned) / 1000;
	push @commit, ($returned - $sent) / 1000;
}
is(scalar @from_sent, $count, "$count single messages arrive");
my $median = median(@from_sent);
diag sprintf
  'median of %d: consumer has the message %.2f ms after COMMIT was sent, %.2f ms after it returned (COMMIT %.2f ms)',
  $count, $median, median(@from_returned), median(@commit);
cmp_ok($median, '<', 50, 'by the wake-up, not by polling');

#
# what did not commit is never sent
#
$node->safe_psql('postgres', <<'END');
BEGIN;
SELECT outbox.enqueue('', 'orders', 'rolled back'::text);
ROLLBACK;
BEGIN;
SELECT outbox.enqueue('', 'orders', 'before the savepoint'::text);
SAVEPOINT s;
SELECT outbox.enqueue('', 'orders', 'after the savepoint'::text);
ROLLBACK TO SAVEPOINT s;
SELECT outbox.enqueue('', 'orders', 'after the rollback to it'::text);
SAVEPOINT t;
SELECT outbox.enqueue('', 'orders', 'released'::text);
RELEASE SAVEPOINT t;
COMMIT;
END
$node->wait_drained;
wait_until('the last message of the transaction',
	sub { grep { $_->{body} eq 'released' } $consumer->received });
is_deeply(
	[ map { $_->{body} } grep { $_->{body} !~ /^\{|^first$/ } $consumer->received ],
	[ 'before the savepoint', 'after the rollback to it', 'released' ],
	'ROLLBACK and ROLLBACK TO SAVEPOINT send nothing; the rest comes in order');

# an error in the transaction is a rollback too
$node->psql('postgres', <<'END');
BEGIN;
SELECT outbox.enqueue('', 'orders', 'followed by an error'::text);
SELECT 1 / 0;
COMMIT;
END
$node->safe_psql('postgres', q{SELECT outbox.enqueue('', 'orders', 'marker'::text)});
wait_until('the marker', sub { grep { $_->{body} eq 'marker' } $consumer->received });
ok(!(grep { $_->{body} eq 'followed by an error' } $consumer->received),
	'an error in the transaction sends nothing');

#
# a message arrives as it was given
#
sub get_message
{
	my $text = $broker->amqp('get', 'properties', '--wait', 20);
	my %message = map { /^([^=]+)=(.*)$/ ? ($1 => $2) : () } split /\n/, $text;

	like(delete $message{'header.x-outbox-id'} // '', qr/^int:\d+$/, 'header x-outbox-id');
	delete $message{timestamp};
	return \%message;
}

$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('shop', 'order.created', '{"item": "coffee"}'::jsonb,
	headers => '{"s": "text", "i": 42, "big": 9007199254740993, "d": 1.5, "t": true, "n": null,
		"a": [1, "two"], "o": {"k": "v"}}',
	message_id => '00000000-0000-4000-8000-000000000002',
	properties => '{"correlation_id": "c-1", "reply_to": "answers", "type": "OrderCreated",
		"app_id": "shop", "priority": 3, "expiration": "600000", "content_encoding": "identity"}');
END
is_deeply(
	get_message(),
	{
		exchange => 'shop',
		routing_key => 'order.created',
		redelivered => 0,
		content_type => 'application/json',
		content_encoding => 'identity',
		correlation_id => 'c-1',
		reply_to => 'answers',
		expiration => '600000',
		message_id => '00000000-0000-4000-8000-000000000002',
		type => 'OrderCreated',
		app_id => 'shop',
		delivery_mode => 2,
		priority => 3,
		'header.s' => 'string:text',
		'header.i' => 'int:42',
		'header.big' => 'int:9007199254740993',
		'header.d' => 'double:1.5',
		'header.t' => 'bool:true',
		'header.n' => 'null:',
		'header.a' => 'array:[int:1,string:two]',
		'header.o' => 'table:{k=string:v}',
		body_length => 18,
		body => '{"item": "coffee"}',
	},
	'jsonb, headers and properties arrive as given');

# the content type follows the type of the payload
for my $case (
	[ q{'plain'::text} => qr{^text/plain}, 'plain' ],
	[ q{'{"a" :1}'::json} => qr{^application/json}, '{"a" :1}' ],
	[ q{'\x006d73ff'::bytea} => qr{^application/octet-stream$}, undef ])
{
	my ($payload, $type, $body) = @$case;

	$node->safe_psql('postgres', "SELECT outbox.enqueue('shop', 'order.x', $payload)");
	my $message = get_message();
	like($message->{content_type}, $type, "content_type of $payload");
	is($message->{body}, $body, "body of $payload") if defined $body;
	is($message->{body_length}, 4, "length of $payload") if !defined $body;
}

$node->safe_psql('postgres', <<'END');
BEGIN;
SET LOCAL outbox.headers = '{"traceparent": "00-abc-def-01"}';
SELECT outbox.enqueue('shop', 'order.x', 'traced'::text, headers => '{"own": 1}');
COMMIT;
END
my $traced = get_message();
is($traced->{'header.traceparent'}, 'string:00-abc-def-01', 'outbox.headers is added');
is($traced->{'header.own'}, 'int:1', 'to the headers of the message');

# a body larger than one frame arrives whole
$node->safe_psql('postgres',
	q{SELECT outbox.enqueue('shop', 'order.x', repeat('0123456789', 50000))});
my $large = get_message();
is($large->{body_length}, 500_000, 'a body of several frames arrives whole');
is($large->{body}, '0123456789' x 50000, 'and unchanged');

# What commits while there is no room for more is read once there is, although the worker
# was woken for it while it had the rest of an older window to read.
$broker->sigstop;
$node->safe_psql('postgres', q{SELECT outbox.enqueue('', 'orders', repeat('0123456789', 500000))});
ok($node->wait_for('the large message to be on its way', 'SELECT in_flight = 1 FROM outbox.status'),
	'the large message fills the window');
$node->safe_psql('postgres', q{SELECT outbox.enqueue('', 'orders', 'behind the large one'::text)});
$broker->sigcont;
wait_until('the message behind it, long before the next poll',
	sub { grep { $_->{body} eq 'behind the large one' } $consumer->received }, 20);
pass('a commit behind a full window is not forgotten');

$node->wait_drained;
is($node->status('dead'), 0, 'nothing ended in dead_letter');

done_testing();
