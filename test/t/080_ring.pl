# Proves that the ring of segments turns: small segments are filled one after the
# other and, once all in them is published, emptied (new files, size 0), and no
# TRUNCATE of it is sent to logical decoding.  A prepared transaction and one with an old snapshot keep what they
# wrote to from being emptied and lose nothing; while all four segments are held
# so, the open one grows and enqueue() goes on.  Neither a GRANT that has not committed nor
# REINDEX ends the worker.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders sets_ok);
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
wal_level = logical
outbox.segment_size = '64kB'
END
create_orders($node);

# The same with a payload that may be large enough for TOAST.
$node->safe_psql('postgres', <<'END');
CREATE OR REPLACE FUNCTION place_order(writer integer, ordered boolean DEFAULT true) RETURNS uuid
LANGUAGE sql AS $$
	WITH placed AS (INSERT INTO orders (writer, ordered) VALUES (writer, ordered) RETURNING *)
	SELECT outbox.enqueue('', 'orders', repeat('x', 100 + placed.seq::int % 50 * 100),
		message_id => placed.id)
	FROM placed;
$$;
CREATE VIEW segment AS
SELECT right(relname, 1)::int AS number, pg_relation_filenode(oid) AS file,
	pg_relation_filenode(reltoastrelid) AS toast_file,
	pg_relation_size(oid) + pg_relation_size(reltoastrelid) AS bytes,
	(SELECT array_agg(pg_relation_filenode(indexrelid) ORDER BY indexrelid)
		FROM pg_index WHERE indrelid = c.oid) AS index_files
FROM pg_class c WHERE oid = ANY ('{outbox.message_0, outbox.message_1,
	outbox.message_2, outbox.message_3}'::regclass[]);
SELECT pg_create_logical_replication_slot('watch', 'test_decoding');
END
my $consumer = $broker->start_consumer('orders');

sub segments
{
	my %segments;

	for my $line (split /\n/, $node->safe_psql('postgres',
			'SELECT number, file, toast_file, bytes, index_files FROM segment'))
	{
		my ($number, $file, $toast, $bytes, $indexes) = split /\|/, $line;
		$segments{$number} =
		  { file => $file, toast => $toast, bytes => $bytes, indexes => $indexes };
	}
	return %segments;
}

# Fill about one segment; dies if an enqueue() fails.
sub fill
{
	$node->safe_psql('postgres', 'SELECT count(place_order(1)) FROM generate_series(1, 60)');
	return;
}

# Go on filling, in transactions of their own, until something has come about.
sub fill_until
{
	my ($what, $condition, $timeout) = @_;

	return wait_until($what, sub { fill(); return $condition->(); }, $timeout // 40, 200);
}

# Segments whose heap, TOAST table and indexes all have another file than before.
sub emptied_since
{
	my %before = @_;
	my %now = segments();

	return grep {
		my $n = $_;
		!grep { $now{$n}{$_} eq $before{$n}{$_} } qw(file toast indexes)
	} sort keys %now;
}

# Segments that a transaction which has written to them still holds: pid => list.
sub held_by_prepared
{
	return map { $_ => 1 } split /\n/, $node->safe_psql('postgres', <<'END');
SELECT DISTINCT right(relation::regclass::text, 1) FROM pg_locks
WHERE pid IS NULL AND mode = 'RowExclusiveLock' AND relation::regclass::text LIKE 'outbox.message\__'
ORDER BY 1
END
}

sub prepare
{
	my ($name) = @_;

	return $node->safe_psql('postgres', <<"END");
BEGIN;
SELECT place_order(2, false);
PREPARE TRANSACTION '$name';
END
}

#
# a backlog, slowly worked off: what is not yet published is not emptied
#
$node->safe_psql('postgres', 'SELECT outbox.pause()');
$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
$node->safe_psql('postgres', 'ALTER SYSTEM SET outbox.in_flight_messages = 1');
$node->reload;
$node->safe_psql('postgres', 'SELECT count(place_order(4)) FROM generate_series(1, 1000)');
my %first = segments();
# a worker looks after the ring at most every 2 s, and did so when it started
$node->wait_for('the worker to have been there for a while', <<'END');
SELECT backend_start < now() - interval '2.5 s' FROM pg_stat_activity
WHERE backend_type = 'outbox worker'
END
$node->safe_psql('postgres', 'SELECT outbox.resume()');
$node->wait_for('the ring to turn while the backlog is worked off',
	'SELECT place_order(4) IS NOT NULL AND count(*) FILTER (WHERE bytes > 0) > 1 FROM segment',
	poll_ms => 10, timeout => 20);
cmp_ok($node->status('pending'), '>', 0, 'the ring turns while a backlog is worked off');
$node->wait_drained;
$node->safe_psql('postgres', 'ALTER SYSTEM RESET outbox.in_flight_messages');
$node->reload;
my @backlog = committed_orders($node);
$consumer->wait_distinct(scalar @backlog, 20);
sets_ok(\@backlog, [ $consumer->received ], 'backlog');

#
# all four segments turn
#
fill_until('all segments to have been emptied',
	sub { '0 1 2 3' eq join ' ', emptied_since(%first) });
pass('heap, TOAST table and indexes of all four segments get new files');
$node->wait_drained;
$node->wait_for('all segments but the open one to be empty',
	'SELECT count(*) FILTER (WHERE bytes = 0) >= 3 FROM segment', timeout => 20);
pass('a segment is emptied to its last byte, the open one excepted');

#
# old transactions: one is prepared, one sees the database as it is now
#
my $prepared = prepare('pin');
my ($pinned) = held_by_prepared();
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
my $before = $reader->query_safe('SELECT count(*) FROM orders');

%first = segments();
cmp_ok($first{$pinned}{bytes}, '>', 0, "a prepared transaction has written to segment $pinned");
fill_until(
	'the other three segments to have been emptied',
	sub {
		my %emptied = map { $_ => 1 } emptied_since(%first);
		return 3 <= grep { $emptied{$_} } grep { $_ != $pinned } 0 .. 3;
	});
my %now = segments();
is($now{$pinned}{file}, $first{$pinned}{file}, 'its segment is not emptied');
cmp_ok($now{$pinned}{bytes}, '>=', $first{$pinned}{bytes}, 'and keeps its rows');
ok(!$consumer->first($prepared), 'and its message has not been sent');

# the one with the old snapshot now writes, twice, with the ring turning between
is($reader->query_safe('SELECT count(*) FROM orders'), $before,
	'a REPEATABLE READ transaction still sees the orders of then');
my @old = $reader->query_safe('SELECT place_order(3)');
my %then = segments();
fill_until('another segment to be emptied', sub { 1 <= (() = emptied_since(%then)) });
push @old, $reader->query_safe('SELECT place_order(3)');
ok(!$consumer->first($old[0]), 'and has sent nothing while open');
$reader->query_safe('COMMIT');
$reader->quit;
$consumer->wait_message($_, 20) for @old;
pass('its messages arrive after its commit');

$node->safe_psql('postgres', "COMMIT PREPARED 'pin'");
ok($consumer->wait_message($prepared, 20), 'and so does that of the prepared transaction');

#
# all four segments held
#
my %prepared;
my $count = 0;
fill_until(
	'every segment to be held by a prepared transaction',
	sub {
		my %held = held_by_prepared();
		my %sizes = segments();

		return 1 if keys %held == 4;
		# a new one only where it may hit another segment, so that they are few
		my $name = 'held ' . ++$count;
		$prepared{$name} = prepare($name) if $count < 40;
		return 0;
	});
diag "$count prepared transactions hold all four segments";
%first = segments();
fill() for 1 .. 10;
$node->wait_for('everything committed to be published',
	'SELECT pending = 0 AND in_flight = 0 FROM outbox.status', timeout => 30);
pass('enqueue() works and messages are published while no segment can be emptied');
fill_until('the open segment to grow beyond its size',
	sub { my %s = segments(); grep { $s{$_}{bytes} > 1024 * 1024 } keys %s; }, 30);
pass('the open segment grows');
is(join(' ', emptied_since(%first)), '', 'no segment was emptied');
ok(!(grep { $consumer->first($_) } values %prepared), 'nothing prepared was sent');

$node->safe_psql('postgres', "COMMIT PREPARED '$_'") for sort keys %prepared;
$consumer->wait_message($_, 20) for values %prepared;
pass('the messages of all prepared transactions arrive');
fill_until("all four segments, segment $pinned too, to be emptied",
	sub { '0 1 2 3' eq join ' ', emptied_since(%first) });
$node->wait_drained;
$node->wait_for('all segments but the open one to be empty',
	'SELECT count(*) FILTER (WHERE bytes = 0) >= 3 FROM segment', timeout => 20);
pass('then the ring turns again');

#
# who has not locked a table, but rows of the catalog, or an index
#
my $worker = $node->worker_pid;
my $granting = $node->background_psql('postgres');
$granting->query_safe('BEGIN');
$granting->query_safe('GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO pg_monitor');
%first = segments();
fill_until('the worker to have come by a segment that it could empty',
	sub { my %s = segments(); 2 < grep { $s{$_}{bytes} > 0 } keys %s });
is($node->worker_pid, $worker, 'a GRANT that has not committed does not end the worker');
is(join(' ', emptied_since(%first)), '', 'which empties no segment meanwhile');
$granting->query_safe('COMMIT');
$granting->quit;
fill_until('all four segments to be emptied',
	sub { '0 1 2 3' eq join ' ', emptied_since(%first) });

my $reindexing = $node->background_psql('postgres');
$reindexing->query_safe('BEGIN');
$reindexing->query_safe("REINDEX INDEX outbox.message_${_}_pkey") for 0 .. 3;
$node->safe_psql('postgres', 'SELECT outbox.resume()');    # has the worker look at once
$node->wait_for('the worker to meet its lock, and to tell', <<'END', timeout => 20);
SELECT last_error LIKE 'somebody has locked the tables%' FROM outbox.worker_status()
END
$reindexing->query_safe('COMMIT');
$reindexing->quit;
fill();
$node->wait_drained;
is($node->worker_pid, $worker, 'nor does a REINDEX');

#
# nothing lost in all this, and nothing for logical decoding
#
my @committed = committed_orders($node);
$consumer->wait_distinct(scalar @committed, 20);
$consumer->wait_quiet(0.5);
sets_ok(\@committed, [ $consumer->received ], 'the ring');

$node->safe_psql('postgres', 'CREATE TABLE other (one int); TRUNCATE other');
my ($inserts, $truncates) = split /\|/, $node->safe_psql('postgres', <<'END');
SELECT count(*) FILTER (WHERE data LIKE 'table outbox.message\__: INSERT%'),
	string_agg(data, '; ') FILTER (WHERE data LIKE '%TRUNCATE%')
FROM pg_logical_slot_get_changes('watch', NULL, NULL)
END
cmp_ok($inserts, '>=', scalar @committed, 'logical decoding sees the messages');
is($truncates, 'table public.other: TRUNCATE: (no-flags)',
	'and a TRUNCATE, but none of outbox');

done_testing();
