# Proves that a copy of a database keeps what its original had and publishes none of it by
# itself.  Restored from a dump: what was pending or deferred is in outbox.held, in order,
# before what was held; and dead letters, whose ids are drawn once more, stay what they
# are.  Made from a template: it is paused, until outbox.adopt() has moved that to
# outbox.held, once.

use strict;
use warnings FATAL => 'all';

use Test::More;

use PostgreSQL::Test::Utils ();

use Outbox::Broker;
use Outbox::Node;

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $consumer = $broker->start_consumer('orders');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => "outbox.max_attempts = 2\noutbox.retry_delay_min = 10ms\n");
my $dump = $node->basedir . '/dump';

sub enqueue
{
	my ($dbname, $queue, $body, $more) = @_;

	return $node->safe_psql($dbname, "SELECT outbox.enqueue('', '$queue', '$body'::text" . ($more // '') . ')');
}

#
# the original: of each kind one
#
my %dead = map { $_ => enqueue('postgres', 'nowhere', $_) } 'first dead', 'second dead';
$node->wait_for('two messages to be given up', 'SELECT dead = 2 AND pending = 0 FROM outbox.status');
my $scheduled = enqueue('postgres', 'orders', 'scheduled', ", deliver_at => now() + interval '1 day'");
$node->wait_for('one to be deferred', 'SELECT deferred = 1 AND pending = 0 FROM outbox.status');
$node->safe_psql('postgres', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
my $pending = enqueue('postgres', 'orders', 'pending', ", ordering_key => 'k'");
$node->safe_psql('postgres', <<'END');
INSERT INTO outbox.message_0 (id, xid, enqueued_at, message_id, exchange, routing_key, content_type, payload)
VALUES (99, '99', now(), '00000000-0000-0000-0000-000000000099', '', 'orders', 'text/plain', 'by hand')
END
is($node->status('held'), 1, 'a row written by hand is held');

#
# the copy; who makes it may read all data, and is no superuser
#
$node->safe_psql('postgres', 'CREATE ROLE backup LOGIN IN ROLE pg_read_all_data');
PostgreSQL::Test::Utils::command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') . ' user=backup' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
PostgreSQL::Test::Utils::command_ok(
	[ 'psql', '-qXAt', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $dump, $node->connstr('copy') ],
	'the dump can be restored');
$node->wait_connected(dbname => 'copy');
is( $node->value(q{SELECT string_agg(convert_from(payload, 'UTF8'), ', ' ORDER BY number) FROM outbox.held}, 'copy'),
	'scheduled, pending, by hand',
	'what had not been sent is held');
is($node->status('pending = 0 AND deferred = 0 AND confirmed = 0', 'copy'), 't', 'and nothing is to be sent');

# Ids begin anew: these two have those of the dead letters.
my $alive = enqueue('copy', 'orders', 'alive');
is($consumer->wait_message($alive, 20)->{body}, 'alive', 'what is new is published');
my $died = enqueue('copy', 'nowhere', 'died here');
$node->wait_for('it to be given up', 'SELECT dead = 3 AND pending = 0 FROM outbox.status', dbname => 'copy');
is( $node->value(
		q{SELECT string_agg(id || ' ' || convert_from(payload, 'UTF8'), ', ' ORDER BY id, died_at) FROM outbox.dead_letter},
		'copy'),
	'1 first dead, 2 second dead, 2 died here',
	'a dead letter with the id of an old one takes nothing of it');
is($node->value("SELECT state FROM outbox.message WHERE message_id = '$_->[0]'", 'copy'),
	$_->[1], "outbox.message calls a message $_->[1] whose id is that of an old dead letter")
  for [ $alive, 'confirmed' ], [ $died, 'dead' ];
is( $node->value(q{SELECT string_agg(message_id::text, ' ' ORDER BY id) FROM outbox.dead_letter WHERE message_id <> '}
		  . "$died'", 'copy'),
	"$dead{'first dead'} $dead{'second dead'}",
	'the old ones have their message_id');

#
# released
#
is($node->safe_psql('copy', 'SELECT outbox.release_held()'), 3, 'release_held() enqueues them');
is($consumer->wait_message($pending, 20)->{body}, 'pending', 'the pending one is published, with its message_id');
is($consumer->wait_message('00000000-0000-0000-0000-000000000099', 20)->{body}, 'by hand', 'and the one written by hand');
$node->wait_for('the scheduled one to be deferred',
	"SELECT count(*) = 1 FROM outbox.deferred WHERE message_id = '$scheduled' AND reason = 'scheduled'",
	dbname => 'copy');
is($node->status('held', 'copy'), 0, 'nothing is held any more');
is($node->status(q{dead || ' ' || deferred || ' ' || held}), '2 1 1', 'the original is as it was');

#
# a copy made from the template
#
$node->safe_psql('template1', 'CREATE DATABASE clone TEMPLATE postgres');
$node->wait_for('the clone to be paused',
	q{SELECT state = 'paused' AND last_error LIKE '%call outbox.adopt()' FROM outbox.status}, dbname => 'clone');
$node->safe_psql('clone', 'SELECT outbox.resume()');    # it was copied in that state
my $first = $node->background_psql('clone');
my $second = $node->background_psql('clone', on_error_stop => 0);
$first->query_safe('BEGIN');
is($first->query_safe('SELECT outbox.adopt()'), 2, 'adopt() takes what was pending and deferred');
# The second waits for the first, and must not move what was enqueued after it.
$second->query_until(qr/begun/, "\\echo begun\nSELECT outbox.adopt();\n");
$node->wait_for('the second to wait', q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted}, dbname => 'clone');
$first->query_safe("SELECT outbox.enqueue('', 'orders', 'of the clone'::text)");
$first->query_safe('COMMIT');
$second->query('SELECT 1');
like($second->{stderr}, qr/ERROR: +the outbox of this database is its own already/, 'a second one is told so');
$node->wait_for('what the clone has enqueued to be confirmed',
	q{SELECT confirmed = 1 AND pending = 0 FROM outbox.status}, dbname => 'clone');
is( $node->value(q{SELECT string_agg(convert_from(payload, 'UTF8'), ', ' ORDER BY number) FROM outbox.held}, 'clone'),
	'by hand, scheduled, pending',
	'and nothing else is');
$first->quit;
$second->quit;

$node->stop;
$broker->stop;
done_testing();
