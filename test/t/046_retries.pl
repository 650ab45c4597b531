# Proves that the delay between two attempts doubles from outbox.retry_delay_min up to
# outbox.retry_delay_max, each a little different; that it and the count of attempts
# outlive a restart; that consumers are told the number of the attempt; that those
# behind a message which is given up go on; that many ordering keys at once keep
# the connection as busy as none; and that a great many keys whose messages wait hold up
# nobody, and are looked at in turn.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use List::Util qw(max min);
use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $MESSAGES = 60;    # for the delays
my $KEYS = 200;
my $SLICE = 10_000;
my $WAITING = 200_000;

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders given_up);
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
track_commit_timestamp = on
outbox.retry_delay_min = '400ms'
outbox.retry_delay_max = '3200ms'
outbox.max_attempts = 1000000
outbox.in_flight_per_key = 1
END

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

#
# how long it waits
#
$node->safe_psql('postgres', <<"END");
CREATE TABLE sample (message bigint, attempts int, due_at timestamptz, recorded_at timestamptz,
	PRIMARY KEY (message, attempts));
SELECT outbox.enqueue('', 'late', i::text) FROM generate_series(1, $MESSAGES) i;
END
$node->safe_psql('postgres', <<"END");
DO \$\$
DECLARE
	give_up timestamptz := clock_timestamp() + interval '60 s';
BEGIN
	LOOP
		INSERT INTO sample
			SELECT id, attempts, due_at, pg_xact_commit_timestamp(xmin) FROM outbox.deferred
			ON CONFLICT DO NOTHING;
		COMMIT;
		EXIT WHEN (SELECT count(*) FROM sample WHERE attempts = 5) = $MESSAGES;
		IF clock_timestamp() > give_up THEN
			RAISE 'not all messages were tried five times';
		END IF;
		PERFORM pg_sleep(0.03);
	END LOOP;
END \$\$
END
for my $attempt (1 .. 5)
{
	my $nominal = min(400 * 2**($attempt - 1), 3200);
	my @delays = split /\n/, $node->safe_psql('postgres',
		"SELECT extract(epoch FROM due_at - recorded_at) * 1000 FROM sample WHERE attempts = $attempt");

	is(scalar @delays, $MESSAGES, "attempt $attempt: each message was seen after it");
	diag sprintf 'delay after attempt %d: %.0f to %.0f ms, median %.0f', $attempt,
	  min(@delays), max(@delays), median(@delays);
	# what passes between the decision and the commit makes the delay seem shorter
	cmp_ok(max(@delays), '<=', 1.2 * $nominal + 1, 'delay at most 1.2 times its nominal length');
	cmp_ok(median(@delays), '>', 0.7 * $nominal - 50, 'and not much shorter');
	cmp_ok(max(@delays) - min(@delays), '>', 0.15 * $nominal, 'they do not all come back at once');
}
is($node->safe_psql('postgres', <<'END'), 0, 'no attempt is made before its time');
SELECT count(*) FROM sample a JOIN sample b ON b.message = a.message AND b.attempts = a.attempts + 1
WHERE b.recorded_at < a.due_at
END

#
# across a restart
#
my $before = $node->safe_psql('postgres', 'SELECT sum(attempts) FROM outbox.deferred');
$node->restart;
$node->wait_connected;
cmp_ok($node->safe_psql('postgres', 'SELECT min(attempts) FROM outbox.deferred'),
	'>=', 5, 'a restart forgets no attempt');
cmp_ok($node->safe_psql('postgres', 'SELECT sum(attempts) FROM outbox.deferred') - $before,
	'<', $MESSAGES, 'and does not make all of them at once');

#
# what the consumer is told
#

# From now on a refused message is put off for good: none is on its way then.
$node->append_conf('postgresql.conf', <<'END');
outbox.retry_delay_min = '1h'
outbox.retry_delay_max = '1h'
END
$node->reload;
$node->wait_for('each of them to be put off',
	q{SELECT min(due_at) > now() + interval '30 min' FROM outbox.deferred});
my %attempts = map { split /\|/ } split /\n/,
  $node->safe_psql('postgres', 'SELECT message_id, attempts FROM outbox.deferred');
$broker->amqp('declare-queue', 'late', 'classic', 'durable');
$node->safe_psql('postgres', 'UPDATE outbox.deferred SET due_at = now(); SELECT outbox.resume()');
$node->wait_drained(timeout => 30);
my ($told, %seen) = (0);
for (1 .. $MESSAGES)
{
	my %message = map { /^([^=]+)=(.*)$/ ? ($1 => $2) : () } split /\n/,
	  $broker->amqp('get', 'late', '--wait', 10);
	my $id = $message{message_id};

	$seen{$id}++;
	$told++ if ($message{'header.x-outbox-attempt'} // '') eq 'int:' . ($attempts{$id} + 1);
}
is(scalar keys %seen, $MESSAGES, 'once their queue is there, all arrive');
is($told, $MESSAGES, 'and each says which attempt it was');
is($broker->amqp('count', 'late'), 0, 'each once');

#
# what waits behind a message that is given up
#
$node->safe_psql('postgres', 'CREATE DATABASE impatient');
$node->safe_psql('postgres', "ALTER DATABASE impatient SET $_")
  for 'outbox.max_attempts = 3', "outbox.retry_delay_min = '50ms'",
  "outbox.retry_delay_max = '200ms'";
$node->safe_psql('impatient', 'CREATE EXTENSION outbox');
my $given_up = $broker->start_consumer('given_up');
$node->safe_psql('impatient', <<'END');
SELECT outbox.enqueue('', CASE WHEN n IN (2, 4, 5) THEN 'never' ELSE 'given_up' END,
	k || '.' || n, ordering_key => k)
FROM generate_series(1, 8) n, unnest('{a,b,c,d,e}'::text[]) k ORDER BY n, k
END
$given_up->wait_distinct(25, 60);
$node->wait_drained(dbname => 'impatient', timeout => 30);
is($node->status('dead', 'impatient'), 15, 'what has no queue is given up');
is($node->value('SELECT min(attempts) || max(attempts)::text FROM outbox.dead_letter', 'impatient'),
	'33', 'after outbox.max_attempts');
my @arrived = map { $_->{body} } $given_up->received;
for my $key ('a' .. 'e')
{
	is(join(' ', grep { /^$key/ } @arrived), join(' ', map { "$key.$_" } 1, 3, 6, 7, 8),
		"key $key: those behind it go on, in order");
}

#
# many keys at once
#

# Publish a backlog; returns messages per second and how many were in flight.
sub slice
{
	my ($key) = @_;

	$node->safe_psql('postgres', 'SELECT outbox.pause()');
	$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.worker_status()");
	my $line = $node->safe_psql('postgres', <<"END");
CREATE TEMPORARY TABLE busy (in_flight int);
SELECT count(outbox.enqueue('', 'orders', repeat('x', 200), ordering_key => $key)) AS n
FROM generate_series(1, $SLICE) i \\gset
SELECT set_config('slice.until', (confirmed + $SLICE)::text, false) AS "until",
	clock_timestamp() AS since, outbox.resume() FROM outbox.worker_status() \\gset
DO \$\$
DECLARE
	give_up timestamptz := clock_timestamp() + interval '60 s';
	s record;
BEGIN
	LOOP
		SELECT * INTO s FROM outbox.worker_status();
		EXIT WHEN s.confirmed >= current_setting('slice.until')::bigint;
		IF clock_timestamp() > give_up THEN
			RAISE 'only % messages confirmed', s.confirmed;
		END IF;
		INSERT INTO busy VALUES (s.in_flight);
		PERFORM pg_sleep(0.005);
	END LOOP;
END \$\$;
SELECT extract(epoch FROM clock_timestamp() - :'since'), avg(in_flight)::int FROM busy;
END
	my ($seconds, $in_flight) = $line =~ /^([\d.]+)\|(\d+)$/m or die "slice: $line";
	$broker->amqp('purge', 'orders');
	return ($SLICE / $seconds, $in_flight);
}

my (%rate, %in_flight);
slice('NULL');    # not counted
for my $round (1 .. 3)
{
	for my $kind ($round % 2 ? qw(plain keyed) : qw(keyed plain))
	{
		my ($rate, $in_flight) = slice($kind eq 'plain' ? 'NULL' : "'key' || i % $KEYS");
		push @{ $rate{$kind} }, $rate;
		push @{ $in_flight{$kind} }, $in_flight;
	}
}
my %median = map { $_ => median(@{ $rate{$_} }) } keys %rate;
my %busy = map { $_ => median(@{ $in_flight{$_} }) } keys %in_flight;
diag sprintf 'messages per second: %.0f without ordering key, %.0f with %d keys, ratio %.2f',
  @median{qw(plain keyed)}, $KEYS, $median{keyed} / $median{plain};
diag "in flight: $busy{plain} without ordering key, $busy{keyed} with";
cmp_ok($busy{keyed}, '>', 20, "$KEYS keys: many messages are in flight");
cmp_ok($median{keyed}, '>', 0.5 * $median{plain}, 'and at least half as many leave as without keys');

#
# a great many keys with messages that wait, for an exchange that is not there
#
my $stored = "'3', now(), gen_random_uuid()";
$node->safe_psql('postgres', <<"END");
INSERT INTO outbox.deferred (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, content_type,
	payload, reason, due_at, attempts)
SELECT 1000000000 + n, $stored, 'missing', '', 'key' || n, 'text/plain', 'x', 'exchange', 'infinity', 0
FROM generate_series(1, $WAITING) n;
SELECT outbox.reload();
END
$node->wait_for('a worker that knows of them',
	q{SELECT connected_since IS NOT NULL AND unavailable = 1 FROM outbox.status WHERE state = 'idle'});
my $orders = $broker->start_consumer('orders');

# The first of a queue was deleted by hand: the one behind it has been waiting for that.
my $behind = $node->safe_psql('postgres', <<"END");
INSERT INTO outbox.deferred (id, xid, enqueued_at, message_id, exchange, routing_key, ordering_key, content_type,
	payload, reason, due_at, attempts)
VALUES (2000000000, $stored, '', 'orders', 'the last key', 'text/plain', 'x', 'behind', 'infinity', 0)
RETURNING message_id
END
wait_until(
	'the key behind all others to be looked at',
	sub {
		$node->safe_psql('postgres', 'SELECT outbox.resume()');
		return $orders->first($behind);
	},
	60, 10);
pass('all keys are looked at in turn');

my @took;
for my $number (1 .. 5)
{
	# has it look into deferred, as at each poll
	$node->safe_psql('postgres', 'SELECT outbox.resume()');
	my ($id, $at) = split /\n/, $node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('', 'orders', 'meanwhile'::text);
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
END
	push @took, ($orders->wait_message($id, 60, 5)->{at} - $at) / 1000;
}
diag sprintf '%d keys wait: messages to others took %s ms', $WAITING, join ' ', map { sprintf '%.0f', $_ } @took;
cmp_ok(median(@took), '<', 500, 'they hold up nobody');

$orders->stop;
$given_up->stop;
$node->stop;
done_testing();
