# Proves what becomes of the messages when the server is in trouble: another backend
# is killed, the worker runs out of memory, a disk is full, worker and launcher are
# terminated, no worker process is free, settings change under way or would hurt the
# worker, and a superuser alters, drops or empties its tables.  Each time the trouble
# is named in the log and in outbox.status, the cluster stays up, the worker neither
# gives up nor spins, and once the cause is gone everything that committed arrives.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils ();
use Outbox::Broker;
use Outbox::Load;
use Outbox::Node;
use Outbox::Sets qw(create_orders committed_orders compare_sets);
use Outbox::Wait qw(wait_until);

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
diag "seed $seed (OUTBOX_TEST_SEED)";
my $broker = Outbox::Broker->new;
$broker->launch;
my $node = Outbox::Node->create(
	'main',
	uri => $broker->uri,
	faultpoints => 1,
	conf => <<'END_CONF');
fsync = off
outbox.retry_delay_min = '50ms'
outbox.retry_delay_max = '100ms'
outbox.max_attempts = 1000000
END_CONF
$broker->wait_ready;

# Another broker, as far as a worker can tell.
$broker->eval_erlang('rabbit_vhost:add(<<"other">>, <<"test">>), '
	  . 'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"other">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>)');
my $other_uri = $broker->uri . 'other';
$broker->amqp('--uri', $other_uri, 'declare-queue', 'orders', 'classic', 'durable');
$broker->amqp('declare-queue', $_, 'classic', 'durable') for qw(orders plain);
my @consumers = ($broker->start_consumer('orders'), $broker->start_consumer('orders', uri => $other_uri));
my $plain = $broker->start_consumer('plain');

#
# helpers
#

sub log_text { return PostgreSQL::Test::Utils::slurp_file($node->logfile, $_[0] // 0); }
sub log_length { return -s $node->logfile; }
sub crashes { return scalar(() = log_text() =~ /all server processes terminated; reinitializing/g); }

# What the worker said last; outbox.status may have lost a table that it shows.
sub last_error
{
	my ($dbname) = @_;

	return $node->value('SELECT last_error FROM outbox.worker_status()', $dbname) // '';
}

sub wait_last_error
{
	my ($pattern, $dbname) = @_;

	return ok(eval { wait_until("last_error to match $pattern", sub { last_error($dbname) =~ $pattern }, 15) },
		"status shows: $pattern")
	  || diag "last_error: " . last_error($dbname);
}

sub wait_log
{
	my ($pattern, $from) = @_;

	return ok(eval { wait_until("the log to match $pattern", sub { log_text($from) =~ $pattern }, 15) },
		"the log says: $pattern");
}

my $number = 0;

# A message of its own arrives: the path is open from end to end.
sub publishes
{
	my ($name, $dbname) = @_;
	my $id = $node->safe_psql($dbname // 'postgres', "SELECT outbox.enqueue('', 'plain', 'message @{[ ++$number ]}'::text)");

	return ok(eval { $plain->wait_message($id, 20) }, $name) || diag $@;
}

sub reload_worker
{
	my ($dbname) = @_;

	$node->safe_psql($dbname // 'postgres', 'SELECT outbox.reload()');
	return;
}

sub configure
{
	my %settings = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET $_ = '$settings{$_}'") for sort keys %settings;
	$node->reload;
	return;
}

# More orders arrive than had before.
sub flows
{
	my ($name, $consumer, $count) = @_;
	my $before = $consumer->distinct;

	return ok(eval { wait_until('orders to flow', sub { $consumer->distinct >= $before + ($count // 50) }, 20, 10) },
		$name) || diag $@;
}

#
# under a load of orders, with the writer as their ordering key
#

create_orders($node);
$node->safe_psql('postgres', <<'END_SQL');
CREATE OR REPLACE FUNCTION place_order(writer integer, ordered boolean DEFAULT true) RETURNS uuid
LANGUAGE sql AS $$
	WITH placed AS (INSERT INTO orders (writer, ordered) VALUES (writer, ordered) RETURNING *)
	SELECT outbox.enqueue('', 'orders', 'order ' || placed.seq, message_id => placed.id,
		ordering_key => CASE WHEN ordered THEN 'w' || writer END)
	FROM placed;
$$;
END_SQL
my $load = Outbox::Load->new(node => $node, seed => $seed, pause_us => 10_000);
$load->start;

subtest 'another backend is killed' => sub {
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $from = log_length();

	flows('orders flow', $consumers[0]);
	kill 'KILL', $pid;
	wait_log(qr/\(PID $pid\) was terminated by signal 9/, $from);
	eval { $session->quit };
	$node->wait_answering;
	flows('and again after the crash restart, with nobody to start anything', $consumers[0]);
	is(crashes(), 1, 'which was one');
};

subtest 'out of memory in the worker' => sub {
	for my $point ('message-encoded', 'record-set-aside')
	{
		my $from = log_length();

		$node->arm($point, 'oom');
		wait_until("fault point $point", sub { $node->fault_time }, 15, 10);
		wait_log(qr/ERROR:  out of memory/, $from);
		wait_last_error(qr/^out of memory$/);
		flows("$point: the launcher starts another worker, which goes on", $consumers[0]);
		reload_worker();
	}
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'disk full where the worker writes' => sub {
	for my $point ('record-stored', 'segment-hint-written')
	{
		my $from = log_length();

		$node->arm($point, '53100');
		wait_until("fault point $point", sub { $node->fault_time }, 15, 10);
		wait_last_error(qr/^fault point $point$/);
		flows("$point: another worker goes on", $consumers[0]);
		reload_worker();
	}
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'worker and launcher are terminated' => sub {
	my $launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'outbox launcher'";
	my $worker = wait_until('a worker', sub { $node->worker_pid }, 20);
	my $old = $node->safe_psql('postgres', $launcher);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	flows('the worker comes back', $consumers[0]);
	isnt($node->worker_pid, $worker, 'as another process');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	flows('without a launcher the worker goes on', $consumers[0]);
	ok( $node->wait_for('another launcher', "SELECT pid <> $old FROM pg_stat_activity WHERE backend_type = 'outbox launcher'", timeout => 15),
		'and another launcher comes');
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'settings are changed under way' => sub {
	my $from = log_length();

	for my $change (
		{ 'outbox.in_flight_messages' => 1 },
		{ 'outbox.in_flight_messages' => 1000, 'outbox.in_flight_per_key' => 20 },
		{ 'outbox.in_flight_per_key' => 1, 'outbox.in_flight_bytes' => '64kB' },
		{ 'outbox.retry_delay_min' => '1s', 'outbox.retry_delay_max' => '10ms', 'outbox.max_attempts' => 1 },
		{ 'outbox.poll_interval' => '10ms', 'outbox.durability' => 'local' },
		{ 'outbox.poll_interval' => '1h', 'outbox.heartbeat' => '1s', 'outbox.confirm_timeout' => '1s' },
		{ 'outbox.segment_size' => '64kB', 'outbox.durability' => 'standbys' })
	{
		configure(%$change);
		flows(join(', ', map { "$_ = $change->{$_}" } sort keys %$change), $consumers[0], 30);
	}

	configure('outbox.enabled' => 'off');
	$node->wait_for('the worker to be disabled', "SELECT state = 'disabled' AND pending > 0 FROM outbox.status");
	configure('outbox.enabled' => 'on');
	flows('off and on again', $consumers[0]);
	for my $turn (1 .. 2)
	{
		configure('outbox.uri' => $other_uri);
		flows("to another broker ($turn)", $consumers[1]);
		configure('outbox.uri' => $broker->uri);
		flows("and back ($turn)", $consumers[0]);
	}
	unlike(log_text($from), qr/ERROR: .*(?:out of memory|fault point)|exited with exit code 1/, 'no worker fails');
};

subtest 'nothing is lost, nothing out of order' => sub {
	$load->stop;
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL');
	$node->reload;
	ok(eval { $node->wait_drained(timeout => 60) }, 'nothing is stuck') or diag $@;
	my @committed = committed_orders($node);
	my %ids = map { $_->{id} => 1 } @committed;
	my @received = map { [ $_->received ] } @consumers;

	eval {
		wait_until('all orders to arrive', sub {
				@received = map { [ $_->received ] } @consumers;
				my %seen = map { $_->{message_id} => 1 } map { @$_ } @received;
				return keys %seen >= @committed;
			}, 20);
	};
	my %all = compare_sets(\@committed, [ map { @$_ } @received ]);
	is(scalar @{ $all{lost} }, 0, 'every order that committed arrived at one broker or the other');
	is(scalar @{ $all{invented} }, 0, 'and no other');
	is(scalar @{ { compare_sets(\@committed, $received[$_]) }->{disorder} }, 0, "in order at broker $_") for 0, 1;
	is($node->status('dead'), 0, 'nothing ended in dead_letter');
	diag sprintf '%d orders, %d and %d arrivals', scalar @committed, map { scalar @$_ } @received;
};

#
# each of these in a database of its own
#

sub make_database
{
	my ($dbname) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->safe_psql($dbname, 'CREATE EXTENSION outbox');
	$node->wait_connected(dbname => $dbname);
	return;
}

subtest 'a disk is really full' => sub {
	my $disk = $ENV{OUTBOX_SMALL_DISK} or plan skip_all => 'there is no small disk (./dev test as root makes one)';
	my $fill = sub {
		open my $out, '>', "$disk/fill" or die "$disk/fill: $!";
		1 while syswrite $out, 'x' x 65536;
		close $out;
	};

	make_database('crowded');
	mkdir "$disk/space" or die "$disk/space: $!";
	$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disk/space'");
	$node->safe_psql('crowded', 'ALTER TABLE outbox.deferred SET TABLESPACE small');
	$fill->();
	my $from = log_length();
	my @ids = split /\n/, $node->safe_psql('crowded', <<'END_SQL');
SELECT outbox.enqueue('', 'plain', 'scheduled'::text, deliver_at => now() + interval '1 s') FROM generate_series(1, 20)
END_SQL
	wait_last_error(qr/could not extend file .*No space left on device/, 'crowded');
	wait_log(qr/HINT:  Check free disk space/, $from);
	unlink "$disk/fill";
	reload_worker('crowded');
	ok(eval { $plain->wait_message($_, 20) for @ids; 1 }, 'with space again, what could not be set aside is delivered');
	$node->wait_drained(dbname => 'crowded');

	# where enqueue() writes: the application gets the error, and nothing is half done
	$node->safe_psql('crowded', "ALTER TABLE outbox.message_$_ SET TABLESPACE small") for 0 .. 3;
	$fill->();
	my ($done, $error) = (0, '');
	my @placed;
	while ($done++ < 2000 && $error eq '')
	{
		my $out = '';

		$node->psql('crowded', "SELECT outbox.enqueue('', 'plain', repeat('x', 1900)) FROM generate_series(1, 10)",
			stdout => \$out, stderr => \$error);
		push @placed, split /\n/, $out if $error eq '';
	}
	like($error, qr/No space left on device/, 'enqueue() fails with the error of the disk');
	ok(eval { $plain->wait_message($_, 20) for @placed; 1 }, 'what had committed is delivered');
	unlink "$disk/fill";
	reload_worker('crowded');
	publishes('and with space again it works', 'crowded');
	$node->wait_drained(dbname => 'crowded');
	is((grep { length $_->{body} == 200 && $_->{body} =~ /^x+$/ } $plain->received), @placed, 'nothing of what failed arrived');
	is(crashes(), 1, 'the cluster stays up');
	$node->safe_psql('postgres', $_) for 'DROP DATABASE crowded', 'DROP TABLESPACE small';
};

subtest 'ALTER DATABASE sets what would hurt' => sub {
	make_database('limits');
	my %settings = (
		statement_timeout => '1ms', lock_timeout => '1ms', idle_in_transaction_session_timeout => '1ms',
		idle_session_timeout => '1ms', default_transaction_read_only => 'on',
		default_transaction_isolation => 'serializable', default_transaction_deferrable => 'on',
		session_replication_role => 'replica', synchronous_commit => 'off', search_path => 'nowhere',
		row_security => 'off', enable_indexscan => 'off', enable_bitmapscan => 'off', work_mem => '64kB',
		plan_cache_mode => 'force_generic_plan', default_table_access_method => 'heap',
		force_parallel_mode => 'on', transaction_timeout => '1ms', exit_on_error => 'on');
	my %known = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT name FROM pg_settings');
	my @set = grep { $known{$_} } sort keys %settings;

	$node->safe_psql('postgres', join ' ', map { "ALTER DATABASE limits SET $_ = '$settings{$_}';" } @set);
	$node->safe_psql('postgres', "ALTER ROLE CURRENT_USER SET idle_in_transaction_session_timeout = '1ms'");
	# not for the sessions of this test
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } 'statement_timeout=0', 'lock_timeout=0', 'idle_session_timeout=0',
	  'idle_in_transaction_session_timeout=0', 'default_transaction_read_only=off', 'session_replication_role=origin',
	  'default_transaction_isolation=read\ committed', $known{transaction_timeout} ? 'transaction_timeout=0' : ();
	my $pid = $node->worker_pid('limits');
	reload_worker('limits');
	ok( $node->wait_for('another worker', "SELECT worker_pid <> $pid AND connected_since IS NOT NULL FROM outbox.status", dbname => 'limits'),
		'a worker with these settings: ' . join ', ', @set);
	my $from = log_length();
	$pid = $node->worker_pid('limits');
	my @ids = split /\n/, $node->safe_psql('limits', <<'END_SQL');
SELECT CASE WHEN n % 10 = 0 THEN outbox.enqueue('', 'plain', 'x'::text, deliver_at => now() + interval '200 ms', ordering_key => 'k')
	ELSE outbox.enqueue('', 'plain', 'x'::text, ordering_key => 'k' || n % 3) END
FROM generate_series(1, 2000) n
END_SQL
	ok(eval { $plain->wait_message($_, 20) for @ids; 1 }, 'publishes, sets aside and records as ever');
	ok(eval { $node->wait_drained(dbname => 'limits', timeout => 20) }, 'to the last message') or diag $@;
	is($node->worker_pid('limits'), $pid, 'it is still the same worker');
	unlike(log_text($from), qr/\[$pid\] (?:ERROR|FATAL)/, 'and has said nothing');
	$node->safe_psql('postgres', 'ALTER ROLE CURRENT_USER RESET ALL');
	$node->safe_psql('postgres', 'DROP DATABASE limits');
};

#
# a superuser and our tables
#

# What is done; what the worker says to it; whether enqueue() refuses; what undoes it.
my $REINSTALL = 'DROP EXTENSION outbox CASCADE; CREATE EXTENSION outbox';

# The statements for each of the tables of the ring, or of progress.
sub segments { my @sql = @_; return map { my $n = $_; map { s/%/outbox.message_$n/gr } @sql } 0 .. 3; }
sub progress { my @sql = @_; return map { my $n = $_; map { s/%/outbox.progress_$n/gr } @sql } 0, 1; }

my @DAMAGES = (
	[ 'a column added to the segments', [ segments('ALTER TABLE % ADD COLUMN extra int') ],
		qr/table "message_\d" does not fit/, 1, [ segments('ALTER TABLE % DROP COLUMN extra') ] ],
	[ 'columns added to progress',
		[ progress(join ', ', 'ALTER TABLE % ADD COLUMN extra int', map { "ADD COLUMN extra$_ text DEFAULT 'x'" } 1 .. 20) ],
		qr/table "progress_0" does not fit/, 0,
		[ progress(join ', ', 'ALTER TABLE % DROP COLUMN extra', map { "DROP COLUMN extra$_" } 1 .. 20) ] ],
	[ 'a column of another type', ['ALTER TABLE outbox.deferred ALTER COLUMN attempts TYPE text'],
		qr/table "deferred" does not fit/, 0, ['ALTER TABLE outbox.deferred ALTER COLUMN attempts TYPE int USING attempts::int'] ],
	[ 'a payload that is null and yet to be sent',
		[ 'SELECT outbox.pause()', q{SELECT outbox.enqueue('', 'plain', 'lost'::text)},
			segments('ALTER TABLE % ALTER payload DROP NOT NULL', 'UPDATE % SET payload = NULL'), 'SELECT outbox.resume()' ],
		qr/table "message_\d" does not fit/, 1, [ segments(q{UPDATE % SET payload = ''}, 'ALTER TABLE % ALTER payload SET NOT NULL') ] ],
	[ 'a table renamed', ['ALTER TABLE outbox.progress_0 RENAME TO progress_old'],
		qr/outbox\.progress_0 is missing/, 0, ['ALTER TABLE outbox.progress_old RENAME TO progress_0'] ],
	[ 'the schema renamed', ['ALTER SCHEMA outbox RENAME TO inbox'],
		qr/outbox\.message_0 is missing/, undef, ['ALTER SCHEMA inbox RENAME TO outbox'] ],
	[ 'a primary key dropped', [ map { "ALTER TABLE outbox.message_$_ DROP CONSTRAINT message_${_}_pkey" } 0 .. 3 ],
		qr/index outbox\.message_\d_pkey does not exist or is invalid/, 0, [ segments('ALTER TABLE % ADD PRIMARY KEY (id)') ] ],
	[ 'a sequence with a cache', ['ALTER SEQUENCE outbox.message_id_seq CACHE 20'],
		qr/sequence outbox\.message_id_seq is missing or was altered/, 1, ['ALTER SEQUENCE outbox.message_id_seq CACHE 1'] ],
	[ 'a table dropped', [ 'ALTER EXTENSION outbox DROP TABLE outbox.progress_1', 'DROP TABLE outbox.progress_1' ],
		qr/outbox\.progress_1 is missing/, 0,
		[ 'CREATE TABLE outbox.progress_1 (LIKE outbox.progress_0, PRIMARY KEY (number))',
			'ALTER EXTENSION outbox ADD TABLE outbox.progress_1' ] ],
	[ 'a column dropped', [ segments('ALTER TABLE % DROP COLUMN headers') ],
		qr/table "message_\d" does not fit/, 1, [$REINSTALL] ]);

subtest 'a superuser alters the tables' => sub {
	make_database('shop');
	isnt($node->psql('shop', 'DROP TABLE outbox.deferred'), 0, 'DROP TABLE alone is refused');

	for my $case (@DAMAGES)
	{
		my ($name, $damage, $error, $refused, $repair) = @$case;
		my $from = log_length();
		my $start = time();

		my $id = $node->safe_psql('shop', "SELECT outbox.enqueue('', 'plain', 'before'::text)");
		$node->safe_psql('shop', join '; ', @$damage);
		if (defined $refused)
		{
			my $stderr = '';
			my $rc = $node->psql('shop', "SELECT outbox.enqueue('', 'plain', 'meanwhile'::text)", stderr => \$stderr);

			is($rc != 0, !!$refused, "$name: enqueue() " . ($refused ? 'says so' : 'goes on'));
			like($stderr, qr/HINT: /, 'with a hint') if $refused;
		}
		if ($damage->[0] =~ /SCHEMA/)
		{
			wait_log($error, $from);
		}
		else
		{
			wait_last_error($error, 'shop');
		}
		wait_log(qr/HINT: /, $from);
		# the one that was running, the next at once, and then only after 1 s or more
		if ($name eq 'a table renamed')
		{
			wait_until('three workers to fail', sub { 3 <= (() = log_text($from) =~ /exited with exit code 1/g) }, 20);
			cmp_ok(time() - $start, '>', 0.9, 'workers that fail are not started again and again');
		}
		$node->safe_psql('shop', join '; ', @$repair);
		reload_worker('shop');
		publishes("$name: undone, and it goes on", 'shop');
		ok(eval { $node->wait_drained(dbname => 'shop', timeout => 15) }, 'nothing is stuck') or diag $@;
	}
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'a superuser empties the tables' => sub {
	# nothing more is to be recorded once the last of these is
	$node->safe_psql('postgres', "ALTER DATABASE shop SET outbox.retry_delay_$_ = '1h'") for qw(min max);
	reload_worker('shop');
	publishes('a worker that does not try again soon', 'shop');
	my $routable = "SELECT outbox.enqueue('', 'plain', 'again'::text) FROM generate_series(1, 10)";
	my @ids = split /\n/, $node->safe_psql('shop', $routable);
	$node->safe_psql('shop', <<'END_SQL');
SELECT outbox.enqueue('', 'plain', 'later'::text, deliver_at => now() + interval '1 h');
SELECT outbox.enqueue('', 'nowhere', 'retried'::text, ordering_key => 'k') FROM generate_series(1, 3)
END_SQL
	$node->wait_for('some to be set aside', 'SELECT pending = 0 AND deferred = 4 FROM outbox.status', dbname => 'shop');
	my $before = () = $plain->received;
	my $from = log_length();

	$node->safe_psql('shop', 'DELETE FROM outbox.progress_0; TRUNCATE outbox.progress_1; DELETE FROM outbox.control');
	reload_worker('shop');
	ok(eval { wait_until('what was sent to be sent again', sub { $before + @ids <= (() = $plain->received) }, 15) },
		'rows of progress deleted: what is still stored is sent again');
	publishes('and it goes on', 'shop');
	ok( $node->wait_for('all to be set aside again', 'SELECT pending = 0 AND deferred = 4 FROM outbox.status', dbname => 'shop', timeout => 15),
		'nothing is stuck, nothing is there twice');
	$node->safe_psql('shop', 'TRUNCATE outbox.deferred');
	publishes('deferred emptied: it goes on', 'shop');
	$node->safe_psql('shop', 'SELECT outbox.pause()');
	ok($node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status", dbname => 'shop'),
		'and without its row in control it can still be paused');
	$node->safe_psql('shop', 'SELECT outbox.resume()');
	$node->wait_drained(dbname => 'shop', timeout => 15);
	unlike(log_text($from), qr/exited with exit code 1/, 'and no worker fails');
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'DROP EXTENSION with messages in flight' => sub {
	my $from = log_length();
	my $before = $plain->distinct;

	$node->safe_psql('shop', "SELECT count(outbox.enqueue('', 'plain', 'x'::text)) FROM generate_series(1, 20000)");
	wait_until('messages to flow', sub { $plain->distinct > $before + 500 }, 20, 5);
	$node->safe_psql('shop', 'DROP EXTENSION outbox');
	wait_until('the worker to leave', sub {
			($node->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox worker' AND datname = 'shop'") // 1) == 0;
		}, 10);
	pass('its worker leaves');
	unlike(log_text($from), qr/(?:ERROR|FATAL|PANIC): /, 'and says nothing');
	$node->safe_psql('shop', 'CREATE EXTENSION outbox');
	publishes('made again, it publishes', 'shop');

	# as docs/operations.md has it
	my ($runbook) = PostgreSQL::Test::Utils::slurp_file('docs/operations.md') =~ /^To reinstall .*?^```sql\n(.*?)^```/ms;
	my $may = q{SELECT string_agg(oid::regprocedure::text, ' ') FROM pg_proc
		WHERE pronamespace = 'outbox'::regnamespace AND has_function_privilege('producer', oid, 'EXECUTE')};
	$node->safe_psql('shop', <<'END_SQL');
CREATE ROLE producer;
GRANT EXECUTE ON FUNCTION outbox.enqueue(text, text, text, jsonb, text, timestamptz, uuid, jsonb) TO producer;
SELECT outbox.pause();
END_SQL
	my $granted = $node->value($may, 'shop');
	$node->wait_for('the worker to pause', "SELECT state = 'paused' FROM outbox.status", dbname => 'shop');
	my @kept = split /\n/, $node->safe_psql('shop', <<'END_SQL');
SELECT outbox.enqueue('', 'plain', 'kept ' || n, ordering_key => 'k',
	deliver_at => CASE n WHEN 2 THEN now() + interval '1 s' END) FROM generate_series(1, 3) n
END_SQL
	$node->safe_psql('shop', $runbook);
	like($granted, qr/^outbox\.enqueue\(text,.*\)$/, 'a role may enqueue');
	is($node->value($may, 'shop'), $granted, 'reinstalled, it still may');
	ok(eval { $plain->wait_message($_, 20) for @kept; 1 }, 'reinstalled with what was not sent: it arrives') or diag $@;
	is(crashes(), 1, 'the cluster stays up');
};

subtest 'no worker process is free' => sub {
	$node->safe_psql('postgres', 'DROP DATABASE shop');
	# the launcher, the one of logical replication, and one more
	$node->append_conf('postgresql.conf', "max_worker_processes = 3\n");
	my $from = log_length();
	$node->restart;
	$node->wait_connected;
	for my $dbname (qw(second third))
	{
		$node->safe_psql('postgres', "CREATE DATABASE $dbname");
		$node->safe_psql($dbname, "CREATE EXTENSION outbox; SELECT outbox.enqueue('', 'plain', 'waits'::text)");
		wait_last_error(qr/max_worker_processes is exhausted/, $dbname);
		is($node->status('state', $dbname), 'stopped', "$dbname: stopped");
	}
	wait_log(qr/HINT:  Raise max_worker_processes \(now 3\) and restart the server/, $from);
	is(scalar(() = log_text($from) =~ /could not start the worker/g), 1, 'logged once');
	publishes('the database with a worker is not concerned');
	$node->safe_psql('postgres', 'DROP EXTENSION outbox');
	ok(eval { wait_until('another to publish', sub { grep { ($node->status('pending', $_) // 1) == 0 } qw(second third) }, 25) },
		'when one falls free, another database gets it')
	  or diag $@;
};

done_testing();
