# Proves what becomes of a message that the broker does not take: returned, nacked
# or fatal to the channel, it is set aside with the broker's words, tried again,
# and delivered once its destination is there, or ends in dead_letter; the others
# are delivered meanwhile, each confirmed once.  And that a message with deliver_at
# comes not before its time and holds up nobody.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders scheduled);
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '400ms'
outbox.max_attempts = 1000000
END
my $orders = $broker->start_consumer('orders');
my $scheduled = $broker->start_consumer('scheduled');

# a second database, whose outbox has less patience
$node->safe_psql('postgres', 'CREATE DATABASE impatient');
$node->safe_psql('postgres', 'ALTER DATABASE impatient SET outbox.max_attempts = 3');
$node->safe_psql('impatient', 'CREATE EXTENSION outbox');
$node->wait_connected(dbname => 'impatient');

sub enqueue
{
	my ($exchange, $key, $body, %args) = @_;
	my $deliver_at = $args{deliver_at} ? ", deliver_at => $args{deliver_at}" : '';

	return $node->safe_psql($args{dbname} // 'postgres',
		"SELECT outbox.enqueue('$exchange', '$key', '$body'::text$deliver_at)");
}

# one row of deferred or dead_letter, as a hash
sub row
{
	my ($table, $id, $dbname) = @_;
	my $reason = $table eq 'deferred' ? 'reason' : "'dead'";
	my %row;

	@row{qw(reason attempts last_error)} = split /\|/,
	  $node->safe_psql($dbname // 'postgres',
		"SELECT $reason, attempts, last_error FROM outbox.$table WHERE message_id = '$id'");
	return \%row;
}

sub wait_attempts
{
	my ($id, $attempts, $dbname) = @_;

	return $node->wait_for("message $id to be tried $attempts times",
		"SELECT attempts >= $attempts FROM outbox.deferred WHERE message_id = '$id'",
		dbname => $dbname, timeout => 20, poll_ms => 10);
}

sub get
{
	my ($queue) = @_;

	return { map { /^([^=]+)=(.*)$/ ? ($1 => $2) : () } split /\n/,
		$broker->amqp('get', $queue, '--wait', 20) };
}

#
# a message that no queue takes
#
my $id = enqueue('', 'nowhere', 'unroutable');
wait_attempts($id, 2);
my $row = row('deferred', $id);
is($row->{reason}, 'retry', 'unroutable: deferred for a retry');
like($row->{last_error}, qr/returned by RabbitMQ.*312 NO_ROUTE/, "with the broker's words");
cmp_ok($node->status('returned'), '>=', 2, 'each attempt was returned');
is($node->status('pending'), 0, 'it is pending no longer');

$broker->amqp('declare-queue', 'nowhere', 'classic', 'durable');
$node->wait_drained(timeout => 20);
my $message = get('nowhere');
is($message->{message_id}, $id, 'once its queue is there, it is delivered');
like($message->{'header.x-outbox-attempt'} // '', qr/^int:\d+$/, 'with header x-outbox-attempt');
my ($attempt) = ($message->{'header.x-outbox-attempt'} // '') =~ /(\d+)/;
cmp_ok($attempt // 0, '>', $row->{attempts}, 'which counts the attempts');
is($broker->amqp('count', 'nowhere'), 0, 'and once');

enqueue('', 'nowhere', 'routable');
$message = get('nowhere');
is($message->{body}, 'routable', 'a message that is taken at once');
ok(!exists $message->{'header.x-outbox-attempt'}, 'has no such header');

#
# ... and for which no queue ever appears
#
my $dead = enqueue('', 'never', 'hopeless', dbname => 'impatient');
$node->wait_for('the hopeless message to be given up', 'SELECT dead = 1 FROM outbox.status',
	dbname => 'impatient', timeout => 20);
$row = row('dead_letter', $dead, 'impatient');
is($row->{attempts}, 3, 'dead letter after outbox.max_attempts');
like($row->{last_error}, qr/returned by RabbitMQ.*312 NO_ROUTE/, "with the broker's words");
is($node->status('pending = 0 AND deferred = 0 AND in_flight = 0', 'impatient'),
	't', 'nothing of it is left to publish');
is($node->status('returned', 'impatient'), 3, 'three attempts were made');
is($node->value("SELECT state FROM outbox.message WHERE message_id = '$dead'", 'impatient'),
	'dead', 'outbox.message calls it dead');

$broker->amqp('declare-queue', 'never', 'classic', 'durable');
enqueue('', 'never', 'hopeful', dbname => 'impatient');
is(get('never')->{body}, 'hopeful', 'a dead letter is not tried again');
is($broker->amqp('count', 'never'), 0, 'also not later');

#
# a queue that refuses what is too much
#
$broker->amqp('declare-queue', 'full', 'classic', 'durable', 'x-max-length=2',
	'x-overflow=reject-publish');
my $nacked = $node->status('nacked', 'impatient');
$node->safe_psql('impatient',
	q{SELECT outbox.enqueue('', 'full', 'n' || n) FROM generate_series(1, 5) n});
$node->wait_for('the refused messages to be set aside, and tried more than outbox.max_attempts times',
	"SELECT (SELECT nacked > $nacked + 6 FROM outbox.status) AND count(*) = 3
		AND count(*) FILTER (WHERE reason = 'stalled' AND attempts = 1) = 3 FROM outbox.deferred",
	dbname => 'impatient', timeout => 20, poll_ms => 10);
like($node->value('SELECT last_error FROM outbox.unavailable', 'impatient'),
	qr/nack/, 'nacked: deferred, and the reason given');
is($node->status('dead', 'impatient'), 1, 'however often, they are not given up');
is($broker->amqp('count', 'full'), 2, 'the queue holds what it can');

$broker->amqp('purge', 'full');
is($node->wait_for('one more of them to be refused',
		'SELECT deferred = 1 FROM outbox.status', dbname => 'impatient', timeout => 20),
	1, 'after a purge two more are delivered');
$broker->amqp('purge', 'full');
$node->wait_drained(dbname => 'impatient', timeout => 20);
is($broker->amqp('count', 'full'), 1, 'and after another the last one');

#
# an exchange that is not there: the broker closes the channel
#
my $confirmed = $node->status('confirmed');
my $culprit = $node->safe_psql('postgres', <<'END');
WITH messages AS MATERIALIZED (
	SELECT n, CASE WHEN n = 101 THEN outbox.enqueue('ghost', 'x', 'culprit'::text)
		ELSE outbox.enqueue('', 'orders', 'good ' || n) END AS id
	FROM generate_series(1, 201) n)
SELECT id FROM messages WHERE n = 101
END
$orders->wait_distinct(200, 20);
$node->wait_for('the culprit to be set aside',
	q{SELECT (reason, exchange, messages) = ('exchange', 'ghost', 1) FROM outbox.unavailable});
$row = row('deferred', $culprit);
is($row->{reason}, 'exchange', 'missing exchange: the culprit is deferred');
like($row->{last_error}, qr/NOT_FOUND.*ghost/, "with the broker's words");
is($node->value('SELECT count(*) FROM outbox.deferred'), 1, 'and nobody else is');
is($node->status('dead'), 0, 'nor given up');

# more of them while the culprit is tried again and again
$node->safe_psql('postgres',
	qq{SELECT outbox.enqueue('', 'orders', 'good ' || $_)}) for 202 .. 241;
$orders->wait_distinct(240, 20);
$node->wait_for('all confirms', 'SELECT pending = 0 AND in_flight = 0 FROM outbox.status');
my @good = map { $_->{body} } $orders->received;
my %seen;
my @first = grep { !$seen{$_}++ } @good;
is_deeply(\@first, [ map { "good $_" } 1 .. 100, 102 .. 241 ],
	'all others are delivered, and in order');
is($node->status('confirmed') - $confirmed, 240,
	'each was confirmed once: what came twice had not been confirmed');
diag sprintf '%d arrivals of %d messages', scalar @good, scalar @first;

# Neither is one given up whose outbox has less patience.
my $waiting = enqueue('ghost', 'x', 'waiting', dbname => 'impatient');
$node->wait_for('the message for the missing exchange to be set aside',
	q{SELECT reason = 'exchange' FROM outbox.deferred}, dbname => 'impatient', timeout => 20);

# Between the declarations it may be returned; that is an attempt like any other, of
# which the impatient one has few.
$node->safe_psql('impatient', 'SELECT outbox.pause()');
$broker->amqp('declare-queue', 'ghosts', 'classic', 'durable');
$broker->amqp('declare-exchange', 'ghost', 'fanout');
$broker->amqp('bind', 'ghosts', 'ghost', '');
$node->safe_psql('impatient', 'SELECT outbox.resume()');
$node->wait_drained(timeout => 20);
$node->wait_drained(dbname => 'impatient', timeout => 20);
is(join(' ', sort map { get('ghosts')->{message_id} } 1 .. 2), join(' ', sort $culprit, $waiting),
	'once the exchange is there, they are delivered');
is($broker->amqp('count', 'ghosts'), 0, 'once, and nothing else');
is($node->status('dead', 'impatient'), 1, 'and were not given up');

#
# a message that the broker refuses for itself: too large
#
$broker->eval_erlang('application:set_env(rabbit, max_message_size, 5000)');
# so that an innocent that is blamed, once, is seen
$node->safe_psql('postgres', 'ALTER DATABASE impatient SET outbox.max_attempts = 1');
my $worker = $node->status('worker_pid', 'impatient');
$node->safe_psql('impatient', 'SELECT outbox.reload()');
$node->wait_for('a worker whose channel knows of it',
	"SELECT worker_pid <> $worker AND state = 'idle' FROM outbox.status", dbname => 'impatient');
$confirmed = $node->status('confirmed', 'impatient');
my $arrived = () = $orders->received;
my $large = $node->safe_psql('impatient', <<'END');
WITH messages AS MATERIALIZED (
	SELECT n, outbox.enqueue('', 'orders', CASE WHEN n = 50 THEN repeat('large', 2000)
		ELSE 'small ' || n END) AS id
	FROM generate_series(1, 100) n)
SELECT id FROM messages WHERE n = 50
END
$node->wait_for('the large message to be given up',
	'SELECT dead = 2 AND deferred = 0 AND pending = 0 FROM outbox.status',
	dbname => 'impatient', timeout => 20);
$row = row('dead_letter', $large, 'impatient');
like($row->{last_error}, qr/PRECONDITION_FAILED/, "refused for itself: dead letter with the broker's words");
is($row->{attempts}, 1, 'after outbox.max_attempts');
my @small = map { $_->{body} } $orders->received;
%seen = ();
is_deeply([ grep { !$seen{$_}++ } @small[ $arrived .. $#small ] ],
	[ map { "small $_" } 1 .. 49, 51 .. 100 ],
	'those before and behind it are delivered, in order');
is($node->status('confirmed', 'impatient') - $confirmed, 99,
	'each was confirmed once: what came twice had not been confirmed');
is($node->status('dead', 'impatient'), 2, 'and none was blamed');
diag sprintf '%d arrivals of 99 messages', @small - $arrived;
$broker->eval_erlang('application:unset_env(rabbit, max_message_size)');

#
# deliver_at
#
my $due = $node->safe_psql('postgres',
	q{SELECT (extract(epoch FROM date_trunc('milliseconds', now() + interval '3 s')) * 1000)::bigint});
my %at = (last => $due, second => $due - 500, past => $due - 10_000_000);
for my $body (qw(last second past))
{
	enqueue('', 'scheduled', $body, deliver_at => "to_timestamp($at{$body} / 1000.0)");
}
enqueue('', 'scheduled', 'plain');
wait_until('the plain message', sub { grep { $_->{body} eq 'plain' } $scheduled->received }, 3, 5);
$node->wait_for('both scheduled messages to be recorded',
	q{SELECT string_agg(reason || attempts, ' ') = 'scheduled0 scheduled0' FROM outbox.deferred},
	timeout => 3, poll_ms => 10);
pass('scheduled messages are deferred, with no attempt counted');
is(join(' ', map { $_->{body} } $scheduled->received), 'past plain',
	'and hold up nobody; a time in the past is no time');

wait_until('the scheduled messages', sub { 4 == (() = $scheduled->received) }, 10, 5);
is(join(' ', map { $_->{body} } $scheduled->received), 'past plain second last',
	'they arrive in the order of their times');
for my $message (grep { $at{ $_->{body} } } ($scheduled->received)[ 2, 3 ])
{
	my $late = $message->{at} / 1000 - $at{ $message->{body} };

	cmp_ok($late, '>=', 0, "\"$message->{body}\" comes not before its time");
	cmp_ok($late, '<', 2000, 'and soon after');
	diag sprintf '"%s" came %.1f ms after its time', $message->{body}, $late;
}

$node->wait_drained(timeout => 20);
is($node->status('dead'), 0, 'nothing ended in dead_letter here');

done_testing();
