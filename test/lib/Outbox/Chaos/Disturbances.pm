package Outbox::Chaos::Disturbances;

# What can be done from outside to PostgreSQL, RabbitMQ and what is between them:
# the table, and how each is done and undone.  Part of Outbox::Chaos.

use strict;
use warnings FATAL => 'all';

use POSIX ();
use Time::HiRes qw(time usleep);

use Outbox::Wait qw(wait_until);

my $LIMIT_UNDO = 60;    # seconds

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
my @TABLE = (
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
		# what was declared just before it was killed may be gone
		undo => sub {
			$_[0]{broker}->wait_ready;
			$_[0]->_declare_all;
		}
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
			push @{ $_[0]{queues} }, "late.$_[1]{number}";
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

sub disturbances { return @TABLE; }

1;
