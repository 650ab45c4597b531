# Proves that the worker reads of outbox.deferred what it needs and no more: whatever the
# statistics say of the table, once what is due at one moment, and the queue of an ordering
# key not for each message; and that what is due leaves room for what is new.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.retry_delay_min = '1h'
outbox.retry_delay_max = '1h'
END

sub another_worker
{
	my ($dbname) = @_;
	my $pid = $node->worker_pid($dbname);

	$node->safe_psql($dbname, 'SELECT outbox.reload()');
	return $node->wait_for('another worker', "SELECT worker_pid <> $pid AND state = 'idle' FROM outbox.status",
		dbname => $dbname, timeout => 20);
}

#
# deferred was empty as VACUUM last looked, and seems to have one row ever since
#
$node->safe_psql('postgres', 'CREATE DATABASE outage');
$node->safe_psql('postgres', 'ALTER DATABASE outage SET outbox.in_flight_per_key = 20');
$node->safe_psql('outage', 'CREATE EXTENSION outbox; ALTER TABLE outbox.deferred SET (autovacuum_enabled = off)');
$node->wait_connected(dbname => 'outage');

# long keys: their index is higher than the others, which seem the cheaper ones to read
my $refused = <<'END';
SELECT count(outbox.enqueue('', 'nowhere', 'x'::text, ordering_key => rpad('key' || n % 200, 250, 'x')))
FROM generate_series(1, 1000) n
END
my $aside = 'SELECT pending = 0 AND deferred = 1000 FROM outbox.status';

$node->safe_psql('outage', $refused);
$node->wait_for('them to be set aside', $aside, dbname => 'outage', timeout => 30);
$node->safe_psql('outage', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status", dbname => 'outage');
$node->safe_psql('outage', 'DELETE FROM outbox.deferred');
$node->wait_for('VACUUM to find it empty',
	"VACUUM outbox.deferred; SELECT reltuples = 0 AND relpages > 0 FROM pg_class WHERE oid = 'outbox.deferred'::regclass",
	dbname => 'outage');
$node->safe_psql('outage', 'SELECT pg_stat_reset()');
$node->safe_psql('outage', "$refused; SELECT outbox.resume()");
ok($node->wait_for('them to be set aside', $aside, dbname => 'outage', timeout => 20),
	'and what is refused from then on is set aside');
is($node->value("SELECT count(*) FROM outbox.deferred WHERE due_at < 'infinity'", 'outage'),
	200, 'with the first of each ordering key due');
ok(another_worker('outage'), 'another worker is there at once');
my ($read, $index) = split /\|/, $node->value(<<'END', 'outage');
SELECT idx_tup_read, indexrelname FROM pg_stat_user_indexes WHERE relid = 'outbox.deferred'::regclass
ORDER BY 1 DESC LIMIT 1
END
diag "of 1000 rows $read were read by way of $index";
cmp_ok($read, '<', 20_000, 'no index is read whole again and again');

#
# many that are due at once
#
$node->safe_psql('postgres', 'CREATE DATABASE calendar');
$node->safe_psql('calendar', 'CREATE EXTENSION outbox');
$node->wait_connected(dbname => 'calendar');
$node->safe_psql('calendar', <<'END');
SELECT count(outbox.enqueue('', 'orders', 'x'::text, deliver_at => now() + interval '10 s')) FROM generate_series(1, 5000)
END
$node->wait_for('them to be set aside', 'SELECT pending = 0 AND deferred = 5000 FROM outbox.status', dbname => 'calendar');
$node->safe_psql('calendar', 'SELECT pg_stat_reset()');
ok($node->wait_drained(dbname => 'calendar', timeout => 30), '5000 messages of one moment are delivered');
another_worker('calendar');
$read = $node->value(<<'END', 'calendar');
SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = 'outbox.deferred_due_at_place_idx'::regclass
END
diag "for them $read rows were read by way of their due time";
cmp_ok($read, '>=', 5000, 'they are found by their due time');
cmp_ok($read, '<', 20_000, 'and not read again with each hundred');

#
# many messages of a key without a queue, while another has one
#
$node->safe_psql('postgres', 'CREATE DATABASE hot');
$node->safe_psql('hot', 'CREATE EXTENSION outbox');
$node->wait_connected(dbname => 'hot');
$node->safe_psql('hot', q{SELECT outbox.enqueue('', 'nowhere', 'x'::text, ordering_key => 'cold')});
$node->wait_for('a queue', 'SELECT pending = 0 AND deferred = 1 FROM outbox.status', dbname => 'hot');
$node->safe_psql('hot', 'SELECT pg_stat_reset()');
$node->safe_psql('hot',
	q{SELECT count(outbox.enqueue('', 'orders', 'x'::text, ordering_key => 'hot')) FROM generate_series(1, 2000)});
$node->wait_for('them to be delivered', 'SELECT pending = 0 AND confirmed = 2000 FROM outbox.status',
	dbname => 'hot', timeout => 30);
another_worker('hot');
my $looks = $node->value(<<'END', 'hot');
SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelid = 'outbox.deferred_ordering_key_place_idx'::regclass
END
diag "for 2000 messages of a key $looks looks at queues";
cmp_ok($looks, '>', 0, 'whether it has a queue is looked at');
cmp_ok($looks, '<', 500, 'and not for each of its messages');

#
# what is due, and what is new, both large
#
$broker->amqp('declare-queue', 'large', 'classic', 'durable');
my $consumer = $broker->start_consumer('large');
$node->safe_psql('postgres', 'CREATE DATABASE pool');
$node->safe_psql('pool', 'CREATE EXTENSION outbox');
$node->wait_connected(dbname => 'pool');
$node->safe_psql('pool', <<'END');
SELECT count(outbox.enqueue('', 'large', repeat('x', 20000), deliver_at => now() + interval '1 day'))
FROM generate_series(1, 1000)
END
$node->wait_for('them to be set aside', 'SELECT pending = 0 AND deferred = 1000 FROM outbox.status', dbname => 'pool');
$node->safe_psql('pool', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status", dbname => 'pool');
my $new = $node->safe_psql('pool', "SELECT outbox.enqueue('', 'large', 'new'::text)");
$node->safe_psql('pool', 'UPDATE outbox.deferred SET due_at = now(); SELECT outbox.resume()');
ok($node->wait_drained(dbname => 'pool', timeout => 30), 'all are delivered');
$consumer->wait_distinct(1001, 20);
my @order = map { $_->{message_id} } $consumer->received;
my ($place) = grep { $order[$_] eq $new } 0 .. $#order;
cmp_ok($place, '<', 500, 'what is new does not wait until all that was due has left');
$consumer->stop;

$node->stop;
done_testing();
