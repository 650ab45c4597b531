#!/usr/bin/perl
#
# ./dev bench enqueue: what outbox.enqueue() costs a transaction.  pgbench runs a small
# business transaction, two updates and an insert, with one more statement in it; the
# contenders differ in that statement:
#
#   outbox    SELECT outbox.enqueue(...), while the worker is paused
#   running   the same while the worker publishes, on the same cores
#   no-op     SELECT of a function with the same arguments that does nothing: in SQL, so
#             that it is inlined, and nothing at all is called
#   nothing   no such statement
#   table     INSERT into an outbox table as one makes it by hand
#   pgq       SELECT pgq.insert_event(...); nobody consumes
#
# One and eight clients, synchronous_commit on and off; then one client that draws the
# script of each transaction by lot, so that whatever the disk does in the meantime meets
# all alike: latency_ms is of a transaction.  Then bytes of WAL, and a million
# messages in one statement against COPY into a table with the columns of a segment and no
# index, and INSERT ... SELECT into the table made by hand.
#
# The worker is paused from before a turn to after it; between turns it publishes, to a
# queue in memory that drops its oldest messages, until nothing is left.  Each turn begins
# with a vacuumed table and a checkpoint; autovacuum is off.
#
# On an idle core a virtual machine sleeps, and waking it costs more than a statement: with
# one client that would be all there is to see, and whoever keeps the machine awake would
# win.  So each core has a loop that runs when nobody else wants to (SCHED_IDLE).
#
# Packages: postgresql-MAJOR-pgq3

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use Time::HiRes qw(time);

use Bench;
use Outbox::Playground;
use Outbox::Process;

GetOptions(
	'seconds=i' => \(my $seconds = 10),
	'rounds=i' => \(my $rounds = 5),
	'clients=s' => \(my $clients = '1,8'),
	'size=i' => \(my $size = 200),
	'count=i' => \(my $count = 1_000_000),
	'transactions=i' => \(my $transactions = 20_000),
	'contenders=s' => \(my $wanted = 'outbox,no-op,nothing,table,pgq,running'),
	'synchronous=s' => \(my $synchronous_commit = 'on,off'),
	'only=s' => \(my $only = 'tps,interleaved,wal,bulk')) or exit 2;
my %wanted = map { $_ => 1 } split /,/, $only;

my $bench = Bench->new('enqueue');
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(dbname => 'bench', conf => <<'END');
autovacuum = off
checkpoint_timeout = 1h
END
my $broker = $playground->broker;
$playground->wait_connected;
$broker->amqp('declare-queue', 'bench', 'classic', 'x-max-length=1000');

$playground->sql(<<'END');
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 100000) i;
CREATE TABLE transfer (
	id bigserial PRIMARY KEY,
	source int NOT NULL,
	target int NOT NULL,
	amount int NOT NULL,
	made_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION no_op(exchange text, routing_key text, payload bytea,
	headers jsonb DEFAULT NULL, ordering_key text DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL, message_id uuid DEFAULT NULL,
	properties jsonb DEFAULT NULL)
RETURNS uuid LANGUAGE sql VOLATILE
AS $$ SELECT '0198f2c4-5b1e-7d27-9a51-3f8c2a6f0e11'::uuid $$;

CREATE TABLE by_hand (
	id bigserial PRIMARY KEY,
	message_id uuid NOT NULL DEFAULT gen_random_uuid(),
	exchange text NOT NULL,
	routing_key text NOT NULL,
	payload bytea NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now(),
	published_at timestamptz
);
CREATE INDEX ON by_hand (created_at) WHERE published_at IS NULL;

CREATE EXTENSION pgq;
CREATE TABLE unindexed (LIKE outbox.message_0);
END

#
# the contenders
#

my %statement = (
	outbox => q{SELECT outbox.enqueue('', 'bench', :payload::bytea);},
	'no-op' => q{SELECT no_op('', 'bench', :payload::bytea);},
	nothing => '',
	table => q{INSERT INTO by_hand (exchange, routing_key, payload) VALUES ('', 'bench', :payload::bytea);},
	pgq => q{SELECT pgq.insert_event('bench', 'bench', :payload);});
my @names = qw(outbox no-op nothing table pgq);
my %script;

for my $name (@names)
{
	$script{$name} = $broker->dir . "/$name.sql";
	open my $out, '>', $script{$name} or die "$script{$name}: $!";
	# the lower half pays the upper one: nobody waits for another in a circle
	print $out <<"END";
\\set source random(1, 50000)
\\set target random(50001, 100000)
\\set amount random(1, 5000)
BEGIN;
UPDATE account SET balance = balance - :amount WHERE id = :source;
UPDATE account SET balance = balance + :amount WHERE id = :target;
INSERT INTO transfer (source, target, amount) VALUES (:source, :target, :amount);
$statement{$name}
COMMIT;
END
	close $out;
}

sub pause
{
	$playground->sql('SELECT outbox.pause()');
	$playground->wait_sql('the worker to pause', "SELECT state = 'paused' FROM outbox.worker_status()");
	return;
}

sub resume
{
	$playground->sql('SELECT outbox.resume()');
	return;
}

# To count what is pending takes a while when it is much: wait_drained() comes last.
sub drain
{
	my ($messages, $confirmed) = @_;

	$playground->wait_sql('the messages to be confirmed',
		"SELECT confirmed >= $confirmed + $messages FROM outbox.worker_status()", 600);
	$playground->wait_drained(60);
	return;
}

sub confirmed { return $playground->sql('SELECT confirmed FROM outbox.worker_status()'); }

sub clean
{
	$playground->sql(<<'END');
SELECT pgq.drop_queue(queue_name, true) FROM pgq.queue;
SELECT pgq.create_queue('bench');
TRUNCATE transfer, by_hand, unindexed;
VACUUM account;
CHECKPOINT;
END
	return;
}

sub wal_position { return $playground->sql(q{SELECT pg_current_wal_insert_lsn() - '0/0'}); }

#
# pgbench
#

sub pgbench
{
	my ($synchronous, @arguments) = @_;
	my ($status, $text) = $broker->capture(
		{ $playground->psql_environment, PGOPTIONS => "-c synchronous_commit=$synchronous" },
		'pgbench', '-n', '-M', 'prepared', '-D', 'payload=' . 'x' x $size, @arguments);

	die "pgbench: $text\n" if $status != 0;
	return $text;
}

# Transactions, transactions per second and bytes of WAL per transaction; ends when all
# that was enqueued is published.
sub run
{
	my ($name, $running, $synchronous, @length) = @_;
	my $confirmed = confirmed();

	pause() unless $running;
	clean();
	my $wal = wal_position();
	my $text = pgbench($synchronous, @length, '-f', $script{$name});
	$wal = wal_position() - $wal;
	$text =~ /number of transactions actually processed: (\d+)/ or die "pgbench: $text\n";
	my $done = $1;
	$text =~ /tps = ([\d.]+) \(without initial/ or die "pgbench: $text\n";
	my $tps = $1;
	resume() unless $running;
	drain($name eq 'outbox' ? $done : 0, $confirmed);
	return ($done, $tps, $wal / $done);
}

sub tps
{
	my ($name, $running, $synchronous, $n) = @_;
	my (undef, $tps) = run($name, $running, $synchronous, '-c', $n, '-j', $n, '-T', $seconds);

	return { tps => sprintf '%.1f', $tps };
}

sub compare_tps
{
	my ($synchronous, $n) = @_;

	$bench->turns("synchronous_commit $synchronous; $n client" . ($n == 1 ? '' : 's'), $rounds,
		map { my $name = $_; [ $name => sub {
			$name eq 'running' ? tps('outbox', 1, $synchronous, $n) : tps($name, 0, $synchronous, $n)
		} ] } split /,/, $wanted);
	return;
}

sub compare_interleaved
{
	my ($synchronous) = @_;
	my $case = "interleaved; synchronous_commit $synchronous";

	print "\n$case\n";
	for my $round (1 .. $rounds)
	{
		my $confirmed = confirmed();

		pause();
		clean();
		my $text = pgbench($synchronous, '-T', $seconds, map { ('-f', $script{$_}) } @names);
		my @latencies = $text =~ /^ - latency average = ([\d.]+) ms/mg;
		my ($messages) = $text =~ /^ - (\d+) transactions/m;

		die "pgbench: $text\n" if @latencies != @names;
		$bench->record($case, $names[$_], $round, 'latency_ms', $latencies[$_]) for 0 .. $#names;
		print "    $round  ", join('  ', map { "$names[$_] $latencies[$_]" } 0 .. $#names), "\n";
		resume();
		drain($messages, $confirmed);
	}
	return;
}

# The same number of transactions for each, so that the images of pages of the business
# tables weigh the same in all, and are gone from the difference to the no-op.
sub compare_wal
{
	my $case = 'WAL';

	$bench->turns($case, $rounds, map { my $name = $_; [ $name => sub {
		my (undef, undef, $wal) = run($name, 0, 'off', '-t', $transactions);

		return { bytes_per_transaction => sprintf '%.1f', $wal };
	} ] } @names);
	my @no_op = $bench->values($case, 'no-op', 'bytes_per_transaction');
	for my $name (qw(outbox table pgq))
	{
		my @all = $bench->values($case, $name, 'bytes_per_transaction');

		$bench->record($case, $name, $_ + 1, 'bytes_per_message', sprintf '%.1f', $all[$_] - $no_op[$_]) for 0 .. $#all;
	}
	return;
}

#
# bulk
#

sub timed
{
	my ($sql) = @_;

	clean();
	my $start = time();
	$playground->sql($sql);
	return { rows_per_second => sprintf '%.0f', $count / (time() - $start) };
}

sub bulk
{
	my $payload = "decode(repeat('78', $size), 'hex')";
	my $confirmed = confirmed();

	pause();
	my $figures = timed("SELECT count(outbox.enqueue('', 'bench', payload)) "
		. "FROM generate_series(1, $count), (SELECT $payload AS payload OFFSET 0) p");
	resume();
	drain($count, $confirmed);
	return $figures;
}

sub compare_bulk
{
	my $payload = "decode(repeat('78', $size), 'hex')";
	my $rows = "SELECT i::bigint, '1000'::xid8, now(), gen_random_uuid(), '', 'bench', NULL, NULL, "
	  . "'application/octet-stream', NULL, NULL, $payload FROM generate_series(1, $count) i";
	my %file = map { $_ => $broker->dir . "/rows.$_" } qw(text binary);

	$playground->sql("COPY ($rows) TO '$file{$_}' (FORMAT $_)") for keys %file;
	$bench->turns('bulk', $rounds,
		[ outbox => \&bulk ],
		(map { my $format = $_; [ "COPY $format" => sub {
			timed("COPY unindexed FROM '$file{$format}' (FORMAT $format)")
		} ] } qw(text binary)),
		[ table => sub { timed("INSERT INTO by_hand (exchange, routing_key, payload) "
			. "SELECT '', 'bench', $payload FROM generate_series(1, $count)") } ]);
	unlink CORE::values %file;
	return;
}

my @awake = map { Outbox::Process->start(
	name => 'loop', command => [ 'chrt', '--idle', '0', 'perl', '-e', '1 while 1' ]) } 1 .. `nproc`;
printf "payload %d bytes; pgbench -M prepared, %d s each\n", $size, $seconds;
run('outbox', 0, 'off', '-t', 5000);    # not counted
if ($wanted{tps})
{
	for my $n (split /,/, $clients)
	{
		compare_tps($_, $n) for split /,/, $synchronous_commit;
	}
}
if ($wanted{interleaved}) { compare_interleaved($_) for split /,/, $synchronous_commit; }
compare_wal() if $wanted{wal};
compare_bulk() if $wanted{bulk};
$_->kill9 for @awake;
$bench->finish;
