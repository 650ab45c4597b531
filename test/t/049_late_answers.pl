# Proves what must hold while answers are late, or come in an odd order: of several of a
# key in flight one is refused, and none that has not been sent passes it; or all are, after
# outbox.in_flight_per_key was lowered, and only the first is tried again; a destination
# that works again is looked at to the end, also if a message returns to an old place in its
# queue, and comes to that end while messages for it keep coming and confirms take their time;
# an ack for what has not been sent counts for nothing; and whoever calls the worker while
# it waits for last answers is heard.  The broker is a fake, which answers when it is
# told to.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use Outbox::FakeBroker;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $fake = Outbox::FakeBroker->new;
my $node = Outbox::Node->create(
	'main',
	uri => $fake->uri,
	conf => <<'END');
outbox.in_flight_per_key = 2
outbox.in_flight_bytes = '64kB'
outbox.retry_delay_min = '1s'
outbox.retry_delay_max = '1s'
outbox.poll_interval = '10min'
END
$node->wait_connected;

# Routing keys of what has arrived, in order.
sub arrived { return map { $_->[1] } $fake->received; }
sub count_of { my ($key) = @_; return scalar grep { $_ eq $key } arrived(); }

# The number of the connection over which a message came first.
sub connection_of { my ($key) = @_; return (map { $_->[4] } grep { $_->[1] eq $key } $fake->received)[0]; }

# Each [routing key, bytes, ordering key], in one transaction.
sub enqueue
{
	my @messages = @_;

	$node->safe_psql('postgres', join "\n", 'BEGIN;', (
			map {
				my ($routing_key, $bytes, $key) = @$_;
				$key = defined $key ? "'$key'" : 'NULL';
				"SELECT outbox.enqueue('', '$routing_key', repeat('x', $bytes), ordering_key => $key);"
			} @messages),
		'COMMIT;');
	return;
}

#
# one of two in flight is refused, the other confirmed, and there is no room for the next
#
$fake->behave(by_key => { first => 'later nack', large => 'none' });
enqueue([ 'first', 1, 'k' ], [ 'second', 1, 'k' ], [ 'third', 1, 'k' ], [ 'large', 100_000 ]);
$node->wait_for('the second to be confirmed',
	'SELECT confirmed = 1 AND in_flight = 2 FROM outbox.status');
$fake->behave(by_key => { first => 'later', large => 'none' });
$node->wait_for('the first to be set aside', 'SELECT deferred > 0 FROM outbox.status');
$fake->behave(by_key => { first => 'later' }, ack_all => connection_of('large'));
$node->wait_for('what is not behind it to be confirmed',
	'SELECT pending = 0 AND in_flight = 0 FROM outbox.status');
is(count_of('third'), 0, 'what had its turn and was not sent does not pass one that was refused');
is($node->status('deferred'), 2, 'it is set aside, too');
wait_until('the first to be tried again', sub { count_of('first') == 2 }, 20);
$fake->behave;
$node->wait_drained(timeout => 20);
is(join(' ', grep { /first|third/ } arrived()), 'first first third', 'and follows it');

#
# two in flight are refused when only one may be
#
$fake->behave(by_key => { refused => 'return later' });
enqueue([ 'refused', 1, 'k' ], [ 'refused', 1, 'k' ]);
$node->wait_for('both to be in flight', 'SELECT in_flight = 2 FROM outbox.status');
$node->safe_psql('postgres', 'ALTER SYSTEM SET outbox.in_flight_per_key = 1');
$node->reload;
# A new session has it when all were told.
$node->wait_for('the setting to be known', q{SELECT current_setting('outbox.in_flight_per_key') = '1'});
$fake->behave(by_key => { refused => 'return' });
$node->wait_for('both to be set aside', 'SELECT deferred = 2 FROM outbox.status');
is($node->value(q{SELECT count(*) FROM outbox.deferred WHERE due_at < 'infinity'}),
	1, 'the second waits behind the first');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET outbox.in_flight_per_key');
$node->reload;
$fake->behave;
$node->wait_drained(timeout => 20);

#
# while the queue of a destination drains, a message returns to its place in front
#
$fake->behave(by_key => { queue => 'return', sentinel => 'return' });
enqueue([ 'queue', 1 ], [ 'sentinel', 1 ]);
$node->wait_for('two to be returned', 'SELECT deferred = 2 FROM outbox.status');
$node->safe_psql('postgres', "UPDATE outbox.deferred SET due_at = 'infinity'");
$fake->behave(by_key => { queue => 'nack', unanswered => 'none' });
enqueue((map { [ 'queue', 1 ] } 1 .. 3), [ 'unanswered', 1 ]);
$node->wait_for('the destination to take nothing',
	'SELECT deferred = 5 AND unavailable = 1 AND in_flight = 1 FROM outbox.status');
$fake->behave(by_key => { queue => 'later', unanswered => 'none' });
wait_until('one of its messages to be tried', sub { count_of('queue') == 5 }, 20);

# Behind the one that is not answered nothing is recorded: the first is on its way back to its place.
$node->safe_psql('postgres', <<'END');
UPDATE outbox.deferred SET due_at = now() WHERE reason = 'retry';
SELECT outbox.resume();
END
wait_until('the one after the first to be tried', sub { count_of('sentinel') == 2 }, 20);
is(count_of('queue'), 5, 'the first is not, since its destination takes nothing');
$node->wait_for('that to be confirmed', 'SELECT in_flight = 1 FROM outbox.status');
my $confirmed = $node->status('confirmed');
$fake->behave(by_key => { unanswered => 'none' });
$node->wait_for('its queue to be taken up', "SELECT confirmed = $confirmed + 3 FROM outbox.status");
$fake->behave(ack_all => connection_of('unanswered'));
ok(eval { $node->wait_drained(timeout => 20) }, 'the first is taken up, too') or diag $@;
is(count_of('queue'), 8, 'each once');

#
# messages for a destination that works again keep coming, and each confirm takes a while
#
$fake->behave(by_key => { busy => 'nack' });
enqueue([ 'busy', 1 ]);
$node->wait_for('it to take nothing', 'SELECT unavailable = 1 FROM outbox.status');
$fake->behave(answer => 'slow');
my $writer = Outbox::Process->start(
	name => 'writer',
	command => [ 'psql', '-qXAt', '-d', $node->connstr('postgres'), '-c', <<'END' ]);
DO $$
BEGIN
	LOOP
		PERFORM outbox.enqueue('', queue, 'x'::text) FROM unnest('{busy,other}'::text[]) queue;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$
END
ok( eval {
		$node->wait_for('no message to wait for its destination', 'SELECT unavailable = 0 FROM outbox.status',
			timeout => 60);
	},
	'its queue comes to an end all the same') or diag $@;
ok($writer->running, 'while messages for it keep coming');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE query LIKE 'DO %'});
$writer->wait_exit(20);
$fake->behave;
$node->wait_drained(timeout => 30);

#
# an ack for what has not been sent
#
$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.in_flight_bytes = '256MB'");
$node->reload;
enqueue([ 'marker', 1 ]);
$node->wait_drained;
my $connection = connection_of('marker');
$fake->behave(deaf => $connection);
$confirmed = $node->status('confirmed');
enqueue(map { [ 'unread', 100_000 ] } 1 .. 200);
my $before = -1;
wait_until(
	'no more to be encoded',
	sub {
		my $now = $node->status('in_flight');
		my $same = $now > 0 && $now == $before;

		$before = $now;
		return $same;
	},
	20, 300);
cmp_ok($before, '<', 200, 'sockets do not hold all');
$fake->behave(deaf => $connection, ack_all => $connection, answer => 'later');
$node->wait_for('the connection to end',
	q{SELECT last_error LIKE '%it confirmed a message that was never sent to it' FROM outbox.status});
is($node->status('confirmed'), $confirmed, 'nothing is confirmed by it');
$fake->behave;
$node->wait_drained(timeout => 30);
cmp_ok(count_of('unread'), '>=', 200, 'and all are sent');

#
# a call while the last answers of a connection are waited for
#
$fake->behave(answer => 'none');
enqueue([ 'last', 1 ]);
$node->wait_for('a message to be in flight', 'SELECT in_flight = 1 FROM outbox.status');
my $worker = $node->worker_pid;
$node->safe_psql('postgres', 'ALTER SYSTEM SET outbox.enabled = off');
# For 150 ms after the reload of the settings answers are waited for.
$node->safe_psql('postgres', <<'END');
SELECT pg_reload_conf();
SELECT pg_sleep(0.05);
SELECT outbox.reload();
END
my $start = time();
ok( eval {
		$node->wait_for('another worker', "SELECT worker_pid <> $worker FROM outbox.status", timeout => 20);
	},
	'the worker hears it at once') or diag $@;
diag sprintf 'another worker after %.2f s', time() - $start;

$node->stop;
$fake->stop;
done_testing();
