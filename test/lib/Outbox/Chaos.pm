package Outbox::Chaos;

# PostgreSQL, RabbitMQ, writers and consumers, and everything that can be done to
# them from outside, at random and overlapping; then a time without faults, and the
# question whether every message that committed has arrived, no other has, and each
# ordering key in order.
#
# So that this can be answered exactly, no queue that has messages to be counted is
# ever deleted.  What is deleted and made anew is what leads to it (an exchange, a
# binding), a queue beside it, and queues that come into being late.
#
# The truth is the table `orders` at the end: each row was inserted in the
# transaction that enqueued its message.  A quarter of the transactions commit
# asynchronously, so a crash may take some of them back.
#
# Every choice is made before the run, from the seed.  When each disturbance comes
# and what it meets also depends on how fast the machine is.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use File::Temp;
use List::Util qw(max min sum0);
use POSIX ();
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(time usleep);

use Outbox::Broker;
use Outbox::Load;
use Outbox::Node;
use Outbox::Process;
use Outbox::Proxy;
use Outbox::Sets qw(compare_sets busiest_stretch);
use Outbox::Wait qw(wait_until);

my $IN_FLIGHT = 200;              # outbox.in_flight_messages; disturbances only lower it
my $AT_ONCE = 4;                  # disturbances that may overlap
my $PAUSE = 0.5;                  # longest time from the start of one to that of the next
my $FLOWING = 50;                 # so many new messages show that all is well
my $BLIND = 0.5;                  # share of disturbances that come while nothing flows
my $UNRECORDED = 5;               # seconds for which a key with a backlog may hold up the record
my $LIMIT_WITHOUT_PROGRESS = 30;  # seconds, while nothing is disturbed
my $LIMIT_MEET = 12;              # seconds until a disturbance that is_met is undone all the same
my $LIMIT_DRAIN = 60;
my $LIMIT_UNDO = 60;
my $LIMIT_RSS_KB = 32 * 1024;

# Exit status of a disturbance that found nothing to disturb.
my $MISSED = 3;

#
# the disturbances
#
#   name, weight   how often it is drawn
#   uses           what no other disturbance may touch meanwhile
#   needs          what no other that uses it may touch meanwhile
#   lasts          seconds between do and undo, from .. to
#   is_met         begins while messages flow, and lasts longer if need be, until
#                  more have arrived
#   do, undo       run in a process of their own, and may take their time; do
#                  returns false if there was nothing to disturb
#   do_here,       run in this process before them, at once
#   undo_here
#   ends_worker    the worker may end without recording what is settled
#   long           does not begin in the last so many seconds
#   locks          what is settled cannot be recorded
#
# They are called with this object and the disturbance's own dice: 'number', and
# 'dice', three numbers from 0 to 1.
#
my @DISTURBANCES = (
	# processes of PostgreSQL
	{
		name => 'worker: kill -9', weight => 2, uses => ['server'], ends_worker => 1,
		do => sub { $_[0]->_kill_one($_[1], $_[0]{worker_title}) },
		undo => \&_server_answers
	},
	{
		name => 'launcher: kill -9', weight => 1, uses => ['server'], ends_worker => 1,
		do => sub { $_[0]->_kill_one($_[1], qr/outbox launcher/) },
		undo => \&_server_answers
	},
	{
		name => "writer's backend: kill -9", weight => 1, uses => ['server'], ends_worker => 1,
		do => sub { $_[0]->_kill_one($_[1], qr/\[local\]/) },
		undo => \&_server_answers
	},
	{
		name => 'worker: SIGSTOP', weight => 2, uses => ['server'], lasts => [ 0.3, 4 ],
		do_here => \&_freeze_worker,
		undo_here => sub { kill 'CONT', $_[1]{frozen} if $_[1]{frozen} }
	},
	{
		name => 'worker: pg_terminate_backend', weight => 2, ends_worker => 1,
		do => sub { $_[0]->_terminate($_[1], q{backend_type = 'outbox worker'}) }
	},
	{
		name => 'launcher: pg_terminate_backend', weight => 1,
		do => sub { $_[0]->_terminate($_[1], q{backend_type = 'outbox launcher'}) }
	},
	{
		name => 'writer: pg_terminate_backend', weight => 2,
		do => sub { $_[0]->_terminate($_[1], q{application_name = 'pgbench'}) }
	},
	# the server
	{
		name => 'server: stop smart, start', weight => 1, uses => ['server'], ends_worker => 1,
		lasts => [ 0, 1 ], do => \&_stop_smart, undo => \&_start_server
	},
	{
		name => 'server: stop fast, start', weight => 1, uses => ['server'], ends_worker => 1,
		lasts => [ 0, 1 ], undo => \&_start_server,
		do => sub { $_[0]{node}->pg_ctl('-m', 'fast', '-t', 60, 'stop') }
	},
	{
		name => 'server: stop immediate, start', weight => 1, uses => ['server'],
		lasts => [ 0, 1 ], ends_worker => 1, undo => \&_start_server,
		do => sub { $_[0]{node}->pg_ctl('-m', 'immediate', '-t', 60, 'stop') }
	},
	{
		name => 'server: kill -9', weight => 1, uses => ['server'], ends_worker => 1,
		lasts => [ 0, 1 ], undo => \&_start_server,
		do => sub { $_[0]{node}->kill9; 1 }
	},
	# what operators do
	{
		name => 'setting: in_flight_messages', weight => 2, lasts => [ 0.5, 4 ],
		do => sub { $_[0]->_set('in_flight_messages', (1, 7, 50)[ 3 * $_[1]{dice}[0] ]) },
		undo => sub { $_[0]->_reset('in_flight_messages') }
	},
	{
		name => 'setting: in_flight_bytes', weight => 1, lasts => [ 0.5, 4 ],
		do => sub { $_[0]->_set('in_flight_bytes', "'64kB'") },
		undo => sub { $_[0]->_reset('in_flight_bytes') }
	},
	{
		name => 'setting: enabled off', weight => 2, lasts => [ 0.2, 3 ],
		do => sub { $_[0]->_set('enabled', 'off') },
		undo => sub { $_[0]->_reset('enabled') }
	},
	{
		name => 'setting: uri past the proxy', weight => 1, lasts => [ 0.5, 4 ],
		do => sub { $_[0]->_set('uri', "'" . $_[0]{broker}->uri . "'") },
		undo => sub { $_[0]->_reset('uri') }
	},
	{
		name => 'pause(), resume()', weight => 2, lasts => [ 0.2, 3 ],
		do => sub { $_[0]->_sql('SELECT outbox.pause()') },
		undo => sub { $_[0]->_sql_until('SELECT outbox.resume()') }
	},
	{
		name => 'reload()', weight => 1, ends_worker => 1,
		do => sub { $_[0]->_sql('SELECT outbox.reload()') }
	},
	# other sessions
	{
		name => 'a snapshot is held', weight => 2,
		do => sub { $_[0]->_hold($_[1], 'SELECT count(*) FROM orders, outbox.status') }
	},
	{
		name => 'a table is locked', weight => 3, uses => ['locks'], locks => 1,
		do => \&_lock_table
	},
	{
		name => 'rows of deferred are locked', weight => 1, uses => ['locks'], locks => 1,
		do => sub { $_[0]->_hold($_[1], 'SELECT count(*) FROM (SELECT FROM outbox.deferred FOR UPDATE) d') }
	},
	{
		name => 'CREATE and DROP DATABASE', weight => 2, lasts => [ 0, 2 ],
		do => \&_create_database,
		undo => sub { $_[0]->_sql_until("DROP DATABASE IF EXISTS other_$_[1]{number}") }
	},
	# RabbitMQ
	# takes longer than all the rest, so nothing else is to be met meanwhile
	{
		name => 'RabbitMQ: kill -9 or stop, start', weight => 1, lasts => [ 1, 2 ],
		uses => [ 'broker', 'objects' ], long => 15,
		do_here => sub {
			$_[0]{broker}{server}->signal($_[1]{dice}[0] < 0.6 ? 'KILL' : 'TERM');
			1;
		},
		undo_here => sub { $_[0]{broker}->kill9; $_[0]{broker}->launch },
		undo => sub { $_[0]{broker}->wait_ready }
	},
	{
		name => 'RabbitMQ: SIGSTOP', weight => 2, uses => ['broker'], lasts => [ 0.3, 4 ],
		do_here => sub { $_[0]{broker}->sigstop; 1 },
		undo_here => sub { $_[0]{broker}->sigcont }
	},
	{
		name => 'RabbitMQ: memory alarm', weight => 2, uses => ['broker'], lasts => [ 0.3, 3 ],
		do => sub { $_[0]->_alarm('set', 'memory') },
		undo => sub { $_[0]->_alarm('clear', 'memory') }
	},
	{
		name => 'RabbitMQ: disk alarm', weight => 1, uses => ['broker'], lasts => [ 0.3, 3 ],
		do => sub { $_[0]->_alarm('set', 'disk') },
		undo => sub { $_[0]->_alarm('clear', 'disk') }
	},
	{
		name => 'RabbitMQ: closes all connections', weight => 2, uses => ['broker'],
		do => sub {
			$_[0]->_erlang('[catch rabbit_networking:close_connection(C, "chaos") || '
				  . 'C <- rabbit_networking:connections()]');
		}
	},
	# exchanges, bindings, queues
	{
		name => 'exchange: deleted, declared', weight => 3, uses => ['shop'],
		needs => ['objects'], is_met => 1, lasts => [ 0.2, 3 ],
		do => sub { $_[0]->_amqp('delete-exchange', 'shop') },
		undo => sub { $_[0]->_amqp_until(@{ $_[0]{make}{shop} }) }
	},
	{
		name => 'binding: removed, made', weight => 3, uses => ['market'],
		needs => ['objects'], is_met => 1, lasts => [ 0.2, 3 ],
		do => sub { $_[0]->_amqp('unbind', 'orders', 'market', 'order.*') },
		undo => sub { $_[0]->_amqp_until(@{ $_[0]{make}{market} }) }
	},
	{
		name => 'queue: deleted, declared', weight => 2, uses => ['copies'],
		needs => ['objects'], is_met => 1, lasts => [ 0.2, 3 ],
		do => sub { $_[0]->_amqp('delete-queue', 'copies') },
		undo => sub { $_[0]->_amqp_until(@{ $_[0]{make}{copies} }) }
	},
	{
		name => 'queue: not there yet', weight => 2,
		needs => ['objects'], is_met => 1, lasts => [ 0.5, 3 ],
		do => \&_order_for_late_queue,
		undo => sub {
			$_[0]->_amqp_until([ 'declare-queue', "late.$_[1]{number}", 'classic', 'durable' ]);
		}
	},
	{
		name => 'queue: full, refuses', weight => 2, uses => ['orders'],
		needs => ['objects'], is_met => 1, lasts => [ 0.3, 2 ],
		do => sub { $_[0]->_erlang($_[0]{make}{full}) },
		undo => sub { $_[0]->_erlang_until($_[0]{make}{not_full}) }
	},
	{
		name => 'queue: confirms nothing', weight => 2, uses => ['side'],
		needs => ['objects'], is_met => 1, lasts => [ 0.5, 4 ],
		do => sub { $_[0]->_erlang(_side_queue('suspend')) },
		undo => sub { $_[0]->_erlang_until(_side_queue('resume')) }
	},
	# the network
	{
		name => 'network: hangs', weight => 2, uses => ['network'], lasts => [ 0.3, 4 ],
		do_here => sub { $_[0]{proxy}->tell('freeze') },
		undo_here => sub { $_[0]{proxy}->tell('pass') }
	},
	{
		name => 'network: loses everything', weight => 1, uses => ['network'], lasts => [ 0.2, 3 ],
		do_here => sub { $_[0]{proxy}->tell('drop') },
		undo_here => sub { $_[0]{proxy}->tell('pass') }
	},
	{
		name => 'network: nobody there', weight => 1, uses => ['network'], lasts => [ 0.2, 3 ],
		do_here => sub { $_[0]{proxy}->tell('gone') },
		undo_here => sub { $_[0]{proxy}->tell('pass') }
	},
	{
		name => 'network: reset', weight => 2, uses => ['network'],
		do_here => sub { $_[0]{proxy}->tell('reset') }
	},
	{
		name => 'network: reset in the middle of a frame', weight => 2, uses => ['network'],
		do_here => sub { $_[0]{proxy}->tell('cut') }
	},
	# none: until messages flow again
	{ name => '(left alone)', weight => 3, calm => 1, lasts => [ 0.5, 1.5 ] },
);

#
# what they do
#

sub _pick
{
	my ($event, @among) = @_;

	return $among[ @among * $event->{dice}[0] ];
}

# In the way of all that follow: commands that may fail because of another
# disturbance are tried again, to undo something until it is done.
sub _until
{
	my ($seconds, $what, $act) = @_;

	my $error = '';

	return eval {
		wait_until($what, sub { eval { $act->() } || do { $error = $@; 0 } }, $seconds, 100);
	} || die "$@$error";
}

sub _kill_one
{
	my ($self, $event, $title) = @_;
	my @pids;

	eval { wait_until('a victim', sub { @pids = sort { $a <=> $b } $self->{node}->titled($title) }, 5) }
	  or return 0;
	return kill 'KILL', _pick($event, @pids);
}

sub _server_answers { return $_[0]{node}->wait_answering(timeout => $LIMIT_UNDO); }

sub _freeze_worker
{
	my ($self, $event) = @_;
	my ($pid) = $self->{node}->titled($self->{worker_title}) or return 0;

	$event->{frozen} = $pid;
	return kill 'STOP', $pid;
}

# What statements return, one after another; undef if one of them failed.  A server
# that is just starting is given a moment.
sub _value
{
	my ($self, $sql, $dbname) = @_;
	my $deadline = time() + 3;

	while (1)
	{
		my ($out, $error) = ('', '');
		my $status = eval {
			$self->{node}->psql($dbname // 'postgres', $sql, stdout => \$out, stderr => \$error);
		} // -1;

		return $out if $status == 0;
		if ($error !~ /^psql: error: connection to server/ || time() > $deadline)
		{
			print "$sql: $error\n";
			return;
		}
		usleep(100_000);
	}
}

sub _sql { return defined _value(@_); }

sub _sql_until
{
	my ($self, $sql) = @_;

	return _until($LIMIT_UNDO, $sql, sub { $self->_sql($sql) });
}

sub _terminate
{
	my ($self, $event, $whom) = @_;
	my @pids = split /\n/, $self->_value(<<"END") // '';
SELECT pid FROM pg_stat_activity WHERE $whom AND datname IS NOT DISTINCT FROM
	CASE WHEN backend_type <> 'outbox launcher' THEN 'postgres' END ORDER BY pid
END

	return @pids && $self->_sql('SELECT pg_terminate_backend(' . _pick($event, @pids) . ')');
}

# The server waits for all sessions to end, so they are asked to.
sub _stop_smart
{
	my ($self) = @_;
	my $node = $self->{node};

	kill 'TERM', $node->{_pid};
	return wait_until(
		'the smart shutdown',
		sub {
			kill 'TERM', $node->titled(qr/\[local\]/);
			return !-e $node->data_dir . '/postmaster.pid';
		},
		60);
}

sub _start_server
{
	my ($self) = @_;

	_until($LIMIT_UNDO, 'the server to start', sub { $self->{node}->pg_ctl('-t', 60, 'start') });
	return $self->_server_answers;
}

sub _set
{
	my ($self, $name, $value) = @_;

	return $self->_sql("ALTER SYSTEM SET outbox.$name = $value; SELECT pg_reload_conf();");
}

sub _reset
{
	my ($self, $name) = @_;

	return $self->_sql_until("ALTER SYSTEM RESET outbox.$name; SELECT pg_reload_conf();");
}

# A transaction that does something and stays for one to four seconds.
sub _hold
{
	my ($self, $event, $sql) = @_;
	my $seconds = 1 + 3 * $event->{dice}[2];

	return $self->_sql(<<"END");
SET lock_timeout = '5s';
BEGIN ISOLATION LEVEL REPEATABLE READ;
$sql;
SELECT pg_sleep($seconds);
COMMIT;
END
}

sub _lock_table
{
	my ($self, $event) = @_;
	my $table = _pick($event, qw(deferred deferred control progress_0 progress_1 dead_letter
		message_0 message_1 message_2 message_3));
	my $mode = ('SHARE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE')[ 3 * $event->{dice}[1] ];

	return $self->_hold($event, "LOCK TABLE outbox.$table IN $mode MODE");
}

# Every other one with an outbox of its own.
sub _create_database
{
	my ($self, $event) = @_;
	my $name = "other_$event->{number}";

	$self->_sql("CREATE DATABASE $name") or return 0;
	$self->_sql(q{CREATE EXTENSION outbox; SELECT outbox.enqueue('', 'copies', 'x'::text)}, $name)
	  if $event->{dice}[0] < 0.5;
	return 1;
}

sub _order_for_late_queue
{
	my ($self, $event) = @_;

	return $self->_sql("SELECT count(place_order_for('late.$event->{number}')) FROM generate_series(1, 20)");
}

sub _erlang
{
	my ($self, $expression) = @_;

	return _until(3, $expression, sub { $self->{broker}->eval_erlang($expression) });
}

sub _erlang_until
{
	my ($self, $expression) = @_;

	return _until($LIMIT_UNDO, $expression, sub { $self->{broker}->eval_erlang($expression) });
}

sub _alarm
{
	my ($self, $verb, $which) = @_;
	my $alarm = "{resource_limit, $which, node()}";

	return $verb eq 'set'
	  ? $self->_erlang("rabbit_alarm:set_alarm({$alarm, []})")
	  : $self->_erlang_until("rabbit_alarm:clear_alarm($alarm)");
}

# The process of the queue: while it is suspended, the broker talks, and does not
# confirm what goes there.
sub _side_queue
{
	my ($act) = @_;

	return 'begin {ok, Q} = rabbit_amqqueue:lookup({resource, <<"/">>, queue, <<"side">>}), '
	  . "ok = sys:$act(amqqueue:get_pid(Q), 2000) end";
}

sub _amqp
{
	my ($self, @command) = @_;

	return _until(3, "@command", sub { $self->{broker}->amqp(@command); 1 });
}

# amqptool's commands as lists
sub _amqp_until
{
	my ($self, @commands) = @_;

	for my $command (@commands)
	{
		_until($LIMIT_UNDO, "@$command", sub { $self->{broker}->amqp(@$command); 1 });
	}
	return 1;
}

#
# what is disturbed
#

# seed, seconds; log => sub { line about what is done }; only => pattern of names
sub new
{
	my ($class, %args) = @_;
	my $self = bless {
		seconds => 60,
		log => sub { },
		only => qr/./,
		%args,
		active => [],
		done => {},          # name => times
		missed => {},
		over => [],          # disturbances that were
		undisturbed => [],   # [from, to]
		failures => [],      # of the chaos itself: texts
		largest_rss => 0,
	}, $class;

	$self->{dir} = File::Temp::tempdir('chaos-XXXXXX', DIR => $PostgreSQL::Test::Utils::log_path);
	srand($self->{seed});
	$self->{plan} = $self->_make_plan;
	srand();    # ports and file names are no part of it
	return $self;
}

# A pack of cards, in which each disturbance is as often as it weighs, dealt again
# and again.
sub _make_plan
{
	my ($self) = @_;
	my @cards = map { ($_) x $_->{weight} } grep { $_->{name} =~ $self->{only} } @DISTURBANCES;
	my (@plan, @pack);

	die "no disturbance is called $self->{only}\n" if !@cards;

	while (@plan < 5 * $self->{seconds} + 100)
	{
		if (!@pack)
		{
			@pack = @cards;
			for my $i (reverse 1 .. $#pack)
			{
				my $j = int(rand($i + 1));
				@pack[ $i, $j ] = @pack[ $j, $i ];
			}
		}
		my $what = pop @pack;
		my ($from, $to) = @{ $what->{lasts} // [ 0, 0 ] };
		push @plan, {
			what => $what,
			number => scalar @plan,
			lasts => $from + rand($to - $from),
			pause => rand($PAUSE),
			blind => rand() < $BLIND && !$what->{is_met},
			dice => [ rand(), rand(), rand() ],
		};
	}
	return \@plan;
}

sub _make_broker_objects
{
	my ($self) = @_;

	$self->{make} = {
		shop => [
			[ 'declare-exchange', 'shop', 'topic' ], [ 'bind', 'orders', 'shop', 'order.*' ]
		],
		market => [
			[ 'declare-exchange', 'market', 'topic' ], [ 'bind', 'orders', 'market', 'order.*' ]
		],
		# nobody counts what is in copies
		copies => [
			[ 'declare-queue', 'copies', 'classic', 'durable', 'x-max-length=1000' ],
			[ 'declare-exchange', 'mirror', 'fanout' ],
			[ 'bind', 'copies', 'mirror', '' ],
			[ 'bind', 'orders', 'mirror', '' ]
		],
		full => 'rabbit_policy:set(<<"/">>, <<"full">>, <<"^orders$">>, '
		  . '[{<<"max-length">>, 0}, {<<"overflow">>, <<"reject-publish">>}], '
		  . '1, <<"queues">>, <<"chaos">>)',
		not_full => 'rabbit_policy:delete(<<"/">>, <<"full">>, <<"chaos">>)',
	};
	$self->_amqp_until(
		(map { [ 'declare-queue', $_, 'classic', 'durable' ] } qw(orders side)),
		map { @{ $self->{make}{$_} } } qw(shop market copies));
	return;
}

# place_order() draws where a message goes, and whether it has an ordering key, by
# the numbers of the order and of its transaction.
#
# Whoever orders for a customer holds the customer's row: n is the place of the
# order among all of this customer that commit, and what its messages must arrive
# in order of.  The customers 8 to 11 order to the queue `side`, so the messages of
# one customer are all in one queue.
sub _make_tables
{
	my ($self) = @_;

	$self->{node}->safe_psql('postgres', <<"END");
CREATE TABLE customers (customer integer PRIMARY KEY, placed bigint NOT NULL DEFAULT 0);
INSERT INTO customers SELECT generate_series(0, 11);
CREATE SEQUENCE order_seq;
CREATE TABLE orders (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	seq bigint NOT NULL,
	customer integer,
	n bigint,
	exchange text NOT NULL,
	routing_key text NOT NULL,
	due_at timestamptz,
	placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION draw(what text, number bigint, faces bigint) RETURNS integer LANGUAGE sql AS \$\$
	SELECT (hashtextextended(what || number, $self->{seed}) % faces + faces)::integer % faces::integer
\$\$;
END
	$self->{node}->safe_psql('postgres', <<'SQL');
CREATE FUNCTION place(v_exchange text, v_routing_key text, v_customer integer,
	v_due_at timestamptz, v_size integer) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
	v_id uuid;
	v_n bigint;
	v_seq bigint := nextval('order_seq');
BEGIN
	UPDATE customers SET placed = placed + 1 WHERE customer = v_customer RETURNING placed INTO v_n;
	INSERT INTO orders (seq, customer, n, exchange, routing_key, due_at)
	VALUES (v_seq, v_customer, v_n, v_exchange, v_routing_key, v_due_at) RETURNING id INTO v_id;
	RETURN outbox.enqueue(v_exchange, v_routing_key,
		format('customer %s, %s; %s', v_customer, v_n, repeat('x', v_size)),
		ordering_key => 'customer ' || v_customer, deliver_at => v_due_at, message_id => v_id);
END
$$;
CREATE FUNCTION place_order(writer integer, ordered boolean DEFAULT true) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
	v_transaction bigint := pg_current_xact_id()::text::bigint;
	v_seq bigint := nextval('order_seq');
	v_customer integer;
	v_where integer := draw('where', v_seq, 10);
	v_due_at timestamptz;
BEGIN
	IF draw('commit', v_transaction, 4) = 0 THEN
		PERFORM set_config('synchronous_commit', 'off', true);
	END IF;
	IF ordered AND draw('key', v_transaction, 10) < 6 THEN
		v_customer := draw('customer', v_transaction, 12);
	ELSIF draw('due', v_seq, 30) = 0 THEN
		v_due_at := clock_timestamp() + draw('delay', v_seq, 3000) * interval '1 ms';
	END IF;
	RETURN place(
		CASE WHEN v_customer >= 8 OR v_where < 5 THEN ''
			WHEN v_where < 7 THEN 'shop' WHEN v_where < 9 THEN 'market' ELSE 'mirror' END,
		CASE WHEN v_customer >= 8 OR v_customer IS NULL AND v_where < 2 THEN 'side'
			WHEN v_where < 5 THEN 'orders' ELSE 'order.placed' END,
		v_customer, v_due_at,
		CASE WHEN draw('size', v_seq, 100) = 0 THEN 40000 ELSE 50 END);
END
$$;
CREATE FUNCTION place_order_for(queue text) RETURNS uuid LANGUAGE sql AS
	$$ SELECT place('', queue, NULL, NULL, 50) $$;
SQL
	return;
}

sub start
{
	my ($self) = @_;
	my $broker = $self->{broker} = Outbox::Broker->new;
	my $node;

	$broker->launch;    # takes its time; initdb meanwhile
	$self->{proxy} = Outbox::Proxy->new(target => $broker->port);
	$node = $self->{node} = Outbox::Node->create(
		'main',
		uri => $self->{proxy}->uri,
		conf => <<"END");
outbox.in_flight_messages = $IN_FLIGHT
outbox.in_flight_per_key = 1
outbox.segment_size = '1MB'
outbox.heartbeat = '5s'
outbox.confirm_timeout = '5s'
outbox.connect_timeout = '2s'
outbox.poll_interval = '1s'
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '1s'
outbox.max_attempts = 1000000
log_line_prefix = '%m [%p] %b '
END
	$self->_make_tables;
	my $oid = $node->value(q{SELECT oid FROM pg_database WHERE datname = 'postgres'});
	$self->{worker_title} = qr/outbox worker for database $oid\b/;
	$broker->wait_ready;
	$self->_make_broker_objects;
	$self->{consumers} = { map { $_ => $broker->start_consumer($_) } qw(orders side) };
	$node->wait_connected;
	$self->{load} = Outbox::Load->new(node => $node, seed => $self->{seed}, pause_us => 10_000);
	$self->{load}->start;
	$self->_wait_flowing;
	return;
}

#
# the run
#

sub _arrived
{
	my ($self) = @_;

	return sum0 map { $_->distinct } values %{ $self->{consumers} };
}

sub _wait_flowing
{
	my ($self) = @_;
	my $before = $self->_arrived;

	return eval {
		wait_until('messages to flow', sub { $self->_sample; $self->_arrived >= $before + $FLOWING },
			$LIMIT_WITHOUT_PROGRESS);
	} // do { push @{ $self->{failures} }, $self->_status; 0 };
}

sub _status
{
	my ($self) = @_;

	return 'nothing arrives; outbox.status: '
	  . ($self->{node}->value('SELECT s FROM outbox.status s') // 'no answer');
}

# Has anything arrived?  And memory of the worker, a few times a second.
sub _sample
{
	my ($self) = @_;
	my $now = time();

	return if $now - ($self->{sampled_at} // 0) < 0.2;
	$self->{sampled_at} = $now;
	my $arrived = $self->_arrived;
	($self->{arrived}, $self->{arrived_at}) = ($arrived, $now)
	  if $arrived != ($self->{arrived} // -1);
	my $pid = $self->{sampled_pid} //= ($self->{node}->titled($self->{worker_title}))[0] // return;
	open my $in, '<', "/proc/$pid/status" or return delete $self->{sampled_pid};
	my ($rss) = join('', <$in>) =~ /^RssAnon:\s+(\d+)/m;
	close $in;
	return delete $self->{sampled_pid} if !$rss;
	$self->{largest_rss} = max($self->{largest_rss}, $rss);
	return;
}

# Run part of a disturbance in a process of its own.
sub _start_part
{
	my ($self, $event, $part) = @_;
	my $here = $event->{what}{"${part}_here"};
	my $code = $event->{what}{$part};

	$event->{part} = $part;
	$event->{missed} = 1 if $here && !$here->($self, $event) && $part eq 'do';
	return if !$code;
	$event->{process} = Outbox::Process->start_code(
		name => "$event->{what}{name}: $part",
		log => "$self->{dir}/disturbances.log",
		code => sub { $code->($self, $event) or POSIX::_exit($MISSED) });
	return;
}

sub _begin
{
	my ($self, $event) = @_;

	$event->{begun} = time();
	push @{ $self->{active} }, $event;
	if ($event->{what}{calm})
	{
		$event->{before} = $self->_arrived;
		return;
	}
	$self->_note_undisturbed(time());
	$self->_start_part($event, 'do');
	return;
}

sub _record
{
	my ($self, $event) = @_;
	my $name = $event->{what}{name};

	$event->{over} = time();
	push @{ $self->{over} }, $event;
	$self->{ $event->{missed} ? 'missed' : 'done' }{$name}++;
	$self->{log}->(sprintf '%7.2f to %7.2f  %s%s', $event->{begun} - $self->{began},
		$event->{over} - $self->{began}, $name, $event->{missed} ? ' (in vain)' : '');
	return;
}

# Is it too early to undo a disturbance?
sub _lasts
{
	my ($self, $event) = @_;
	my $now = time();

	$event->{until} //= $now + $event->{lasts};
	$event->{before} //= $self->{arrived};
	return 1 if $now < $event->{until};
	return 0 if !$event->{what}{is_met} || $now > $event->{until} + $LIMIT_MEET;
	return $self->{arrived} < $event->{before} + 2 * $FLOWING;
}

# Take a disturbance as far as it goes; true once it is over.
sub _advance
{
	my ($self, $event, $hurry) = @_;

	return $self->_advance_calm($event, $hurry) if $event->{what}{calm};
	if (my $process = $event->{process})
	{
		return 0 if $process->running;
		my $status = $process->{status} >> 8;
		delete $event->{process};
		$self->{node}->learn_pid;
		$event->{missed} = 1 if $status != 0 && $event->{part} eq 'do';
		push @{ $self->{failures} }, "could not undo: $event->{what}{name}"
		  if $status != 0 && $status != $MISSED && $event->{part} eq 'undo';
	}
	if ($event->{part} eq 'do')
	{
		return 0 if $self->_lasts($event) && !$event->{missed} && !$hurry;
		$self->_start_part($event, 'undo');
		return 0;
	}
	$self->_record($event);
	return 1;
}

sub _advance_calm
{
	my ($self, $event, $hurry) = @_;
	my $lasted = time() - $event->{begun};
	my $flows = $self->_arrived >= $event->{before} + $FLOWING;

	return 0 if $lasted < $event->{lasts} && !$hurry;
	if (!$flows && $lasted > $LIMIT_WITHOUT_PROGRESS)
	{
		push @{ $self->{failures} }, $self->_status;
		$flows = 1;
	}
	return 0 if !$flows && !$hurry;
	$self->_record($event);
	return 1;
}

sub _fits
{
	my ($self, $event) = @_;
	my @active = map { $_->{what} } @{ $self->{active} };
	my $what = $event->{what};
	my %used = map { $_ => 1 } map { $_->{name}, @{ $_->{uses} // [] } } @active;
	my %needed = map { $_ => 1 } map { @{ $_->{needs} // [] } } @active;

	return !@active if $what->{calm};
	return
		 @active < $AT_ONCE
	  && !grep({ $used{$_} } $what->{name}, @{ $what->{uses} // [] }, @{ $what->{needs} // [] })
	  && !grep({ $needed{$_} } @{ $what->{uses} // [] })
	  && !grep({ $_->{calm} } @active);
}

# Most of them shall meet a system at work.
sub _flows
{
	my ($self) = @_;
	my $silent = time() - $self->{arrived_at};

	return 1 if $silent < 1;
	return 0 if @{ $self->{active} } || time() - $self->{calm_since} < $LIMIT_WITHOUT_PROGRESS
	  || $silent < $LIMIT_WITHOUT_PROGRESS;
	push @{ $self->{failures} }, $self->_status;
	return $self->{arrived_at} = time();
}

sub _note_undisturbed
{
	my ($self, $now) = @_;
	my $since = delete $self->{calm_since} // return;

	push @{ $self->{undisturbed} }, [ $since, $now ];
	return;
}

sub disturb
{
	my ($self) = @_;
	my $next = 0;
	my $end = time() + $self->{seconds};

	$self->{began} = $self->{calm_since} = time();
	while (time() < $end || @{ $self->{active} })
	{
		my $over = time() >= $end;

		$self->_sample;
		$self->{active} = [ grep { !$self->_advance($_, $over) } @{ $self->{active} } ];
		shift @{ $self->{plan} }
		  if !$over && time() + ($self->{plan}[0]{what}{long} // 0) > $end;
		$self->{calm_since} //= time()
		  if !grep { !$_->{what}{calm} } @{ $self->{active} };
		if (  !$over
			&& time() >= $next
			&& $self->_fits($self->{plan}[0])
			&& ($self->{plan}[0]{blind} || $self->_flows))
		{
			my $event = shift @{ $self->{plan} };
			$self->_begin($event);
			$next = time() + $event->{pause};
		}
		usleep(20_000);
	}
	$self->{disturbed_for} = time() - $self->{began};
	return;
}

# No more faults: messages flow, then the writers stop, and all that is left is
# delivered.
sub drain
{
	my ($self) = @_;
	my $start = time();

	$self->{log}->('no more disturbances');
	$self->_wait_flowing;
	$self->{load}->stop;
	$self->_start_late_consumers;
	eval { $self->{node}->wait_drained(timeout => $LIMIT_DRAIN) }
	  or push @{ $self->{failures} }, "does not drain: $@";
	$self->{committed} = [ $self->_committed ];
	my $wanted = @{ $self->{committed} };
	# what does not come is named by the comparison
	eval { wait_until('all', sub { $self->_sample; $self->_arrived >= $wanted }, 20) };
	$self->{consumers}{orders}->wait_quiet(0.5);
	$self->{drained_for} = time() - $start;
	$self->_note_undisturbed(undef);
	return;
}

sub _start_late_consumers
{
	my ($self) = @_;

	for my $queue (split /\n/, $self->{node}->value(
			q{SELECT DISTINCT routing_key FROM orders WHERE routing_key LIKE 'late.%'}))
	{
		$self->{consumers}{$queue} = $self->{broker}->start_consumer($queue);
	}
	return;
}

sub _committed
{
	my ($self) = @_;
	my @orders;

	for my $line (split /\n/, $self->{node}->safe_psql('postgres', <<'END'))
SELECT id, customer, n, customer IS NOT NULL, exchange, routing_key,
	(extract(epoch FROM due_at) * 1000000)::bigint, placed_at
FROM orders
END
	{
		my %order;
		@order{qw(id writer seq ordered exchange routing_key due_at placed_at)} =
		  split /\|/, $line;
		push @orders, \%order;
	}
	return @orders;
}

#
# what came of it
#

# For whoever has to find out what happened: what RabbitMQ said, what arrived, and
# what should have.
sub _keep_evidence
{
	my ($self) = @_;

	File::Copy::copy($_, $self->{dir})
	  for glob("$self->{broker}{dir}/log/*.log"), map { $_->{file} } values %{ $self->{consumers} };
	open my $out, '>', "$self->{dir}/committed" or die "$self->{dir}/committed: $!";
	print $out "$_\n" for _lines(@{ $self->{committed} });
	close $out;
	return;
}

# Connections of the worker, and channels that RabbitMQ closed on it.
sub _broker_log_counts
{
	my ($self) = @_;
	my ($connections, $channels) = (0, 0);

	for my $file (glob "$self->{broker}{dir}/log/*.log")
	{
		open my $in, '<', $file or next;
		while (my $line = <$in>)
		{
			$connections++ if $line =~ m{outbox/postgres.*authenticated and granted access};
			$channels++ if $line =~ /Channel error on connection/;
		}
		close $in;
	}
	return ($connections, $channels);
}

# What the server's log must not say.
sub _server_log_findings
{
	my ($self) = @_;
	my @findings;

	open my $in, '<', $self->{node}->logfile or return 'no log';
	while (my $line = <$in>)
	{
		chomp $line;
		push @findings, $line
		  if $line =~ /PANIC:|TRAP:|terminated by signal (?!9\b|15\b|3\b)|stuck spinlock/
		  || $line =~ /outbox.*(?:broke the protocol|confirmed a message|returned a message that)/
		  || $line =~ /is not settled|batch is full|could be set aside/;
	}
	close $in;
	return @findings;
}

# The longest time without an arrival while nothing was disturbed.  The last stretch
# ends with the last message.
sub _longest_silence
{
	my ($self, @received) = @_;
	my @at = sort { $a <=> $b } map { $_->{at} / 1e6 } @received;
	my $longest = 0;

	for my $stretch (@{ $self->{undisturbed} })
	{
		my ($from, $to) = ($stretch->[0], $stretch->[1] // $at[-1] // $stretch->[0]);
		my $last = $from;
		for my $at (grep { $_ > $from && $_ < $to } @at)
		{
			$longest = max($longest, $at - $last);
			$last = $at;
		}
		$longest = max($longest, $to - $last);
	}
	return $longest;
}

# The busiest stretch, of so many seconds, around an end of the worker.
sub _unrecorded
{
	my ($event, $locked, @at) = @_;
	my ($from, $to) = ($event->{begun} - 10, $event->{over} + 5);
	my $length = $UNRECORDED + sum0 map { $_->{over} - $_->{begun} }
	  grep { $_->{over} > $from && $_->{begun} < $event->{over} } @$locked;

	return busiest_stretch($length, grep { $_ > $from && $_ < $to } @at);
}

# Copies that are owed to the end of a channel, a connection, or the worker: what
# was in flight; and to the last, what was settled and not recorded.  While our
# tables are locked nothing is recorded.
sub _allowed_duplicates
{
	my ($self, $found, @received) = @_;
	my @at = map { $_->{at} / 1e6 } @received;
	my @ends = grep { $_->{what}{ends_worker} } @{ $self->{over} };
	my @locked = grep { $_->{what}{locks} } @{ $self->{over} };

	@{$found}{qw(connections channels)} = $self->_broker_log_counts;
	$found->{ends} = @ends;
	$found->{unrecorded} = sum0 map { _unrecorded($_, \@locked, @at) } @ends;
	return $found->{unrecorded}
	  + $IN_FLIGHT * (max(0, $found->{connections} - 1) + $found->{channels});
}

sub judge
{
	my ($self) = @_;
	my @received = sort { $a->{at} <=> $b->{at} } map { $_->received } values %{ $self->{consumers} };
	my %due = map { $_->{id} => $_->{due_at} } grep { $_->{due_at} } @{ $self->{committed} };
	my %found = (compare_sets($self->{committed}, \@received),
		committed => $self->{committed},
		received => \@received);

	$found{early} = [ grep { $due{ $_->{message_id} } && $_->{at} < $due{ $_->{message_id} } } @received ];
	$found{allowed} = $self->_allowed_duplicates(\%found, @received);
	$found{silence} = $self->_longest_silence(@received);
	$found{dead} = $self->{node}->status('dead');
	$found{left} = $self->{node}->value(<<'END');
SELECT concat_ws(', ', nullif(pending, 0) || ' pending', nullif(deferred, 0) || ' deferred',
	nullif(in_flight, 0) || ' in flight', nullif(held, 0) || ' held') FROM outbox.status
END
	$found{log} = [ $self->_server_log_findings ];
	$self->{found} = \%found;
	return;
}

sub run
{
	my ($self) = @_;

	$self->start;
	$self->disturb;
	$self->drain;
	$self->_keep_evidence;
	$self->judge;
	return $self;
}

# What is claimed, as [true or false, name, list of what contradicts it].
sub checks
{
	my ($self) = @_;
	my $found = $self->{found};
	my $copies = @{ $found->{duplicates} };

	return (
		[ @{ $found->{committed} } > 0, 'something was committed', [] ],
		(map { my ($key, $name) = @$_; [ !@{ $found->{$key} }, $name, $found->{$key} ] }
			[ lost => 'nothing lost' ],
			[ invented => 'nothing arrived that did not commit' ],
			[ disorder => "each customer's messages in order" ],
			[ early => 'nothing arrived before its time' ],
			[ log => 'the server log shows no failure of our own' ]),
		[ $copies <= $found->{allowed}, "duplicates within bounds ($copies of at most $found->{allowed})",
			$found->{duplicates} ],
		[ $found->{dead} == 0, 'no dead letters', [] ],
		[ $found->{left} eq '', 'nothing is left to be published', [ $found->{left} ] ],
		[ $self->{largest_rss} > 0 && $self->{largest_rss} < $LIMIT_RSS_KB,
			sprintf('the worker needs less than %d MB', $LIMIT_RSS_KB / 1024),
			["RssAnon $self->{largest_rss} kB"] ],
		[ $found->{silence} < $LIMIT_WITHOUT_PROGRESS,
			"no more than $LIMIT_WITHOUT_PROGRESS s without progress while nothing is disturbed",
			["$found->{silence} s"] ],
		[ !@{ $self->{failures} }, 'every disturbance was undone, and then messages flowed',
			$self->{failures} ],
	);
}

# The first of a list, for people.
sub examples
{
	my (@list) = @_;

	return _lines(@list[ 0 .. min(4, $#list) ]);
}

sub _lines
{
	return map {
		my $item = $_;
		ref $item ? join ' ', map { "$_=" . ($item->{$_} // '') } sort keys %$item : $item;
	} @_;
}

# Both tables, as lines.
sub table
{
	my ($self) = @_;
	my $found = $self->{found};
	my @lines = (sprintf('%-44s %5s %7s', 'what was done', 'times', 'in vain'));

	for my $what (@DISTURBANCES)
	{
		push @lines, sprintf '  %-42s %5d %7s', $what->{name}, $self->{done}{ $what->{name} } // 0,
		  $self->{missed}{ $what->{name} } || '';
	}
	push @lines, '', sprintf('what came of it (seed %d, %.0f s of disturbances, %.0f s to drain)',
		$self->{seed}, $self->{disturbed_for}, $self->{drained_for});
	for my $row (
		[ 'messages committed', scalar @{ $found->{committed} } ],
		[ 'messages received', scalar @{ $found->{received} } ],
		[ 'lost', scalar @{ $found->{lost} } ],
		[ 'invented', scalar @{ $found->{invented} } ],
		[ 'reordered within a key', scalar @{ $found->{disorder} } ],
		[ 'before their time', scalar @{ $found->{early} } ],
		[ 'duplicates', scalar @{ $found->{duplicates} } ],
		[ '  allowed', $found->{allowed} ],
		[ '  for: connections', $found->{connections} ],
		[ '  channels closed on a message', $found->{channels} ],
		[ '  not recorded at an end of the worker', $found->{unrecorded} ],
		[ 'delivered again by RabbitMQ', scalar @{ $found->{redelivered} } ],
		[ 'dead letters', $found->{dead} ],
		[ 'left over', $found->{left} || 'nothing' ],
		[ 'largest RssAnon of the worker', "$self->{largest_rss} kB" ],
		[ 'longest silence while undisturbed', sprintf '%.1f s', $found->{silence} ])
	{
		push @lines, sprintf '  %-42s %12s', @$row;
	}
	return @lines;
}

1;
