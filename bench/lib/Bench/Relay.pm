package Bench::Relay;

# An opponent: a program that takes messages from a table (bench/relays/NAME) and
# publishes them.  Each has in the schema of its own name the functions
# relay_enqueue(routing_key, payloads), relay_enqueue_many(count, routing_key, payload)
# and relay_pending(), and the same command line.

use strict;
use warnings FATAL => 'all';

use Carp;
use Cwd qw(abs_path);
use File::Basename;
use File::Temp;
use List::Util qw(sum0);
use Time::HiRes qw(sleep time);

use Bench qw(maximum minimum);
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my %RELAYS = (
	node => { command => [ 'node', 'node/relay.js' ] },
	pgq => { command => [ 'node', 'pgq/relay.js' ], start => \&_start_ticker, no_listen => 1 },
	python => { command => [ '/usr/bin/python3', 'python/relay.py' ] },
	transactional => {
		command => [ 'node', 'transactional/relay.js' ],
		schema => [ 'node', 'transactional/schema.js' ],
		listen_conf => "wal_level = logical\n",
		slow => 1,
	});

sub names { return sort keys %RELAYS; }

# Has it a mode --listen?
sub can_listen { my ($class, $name) = @_; return !$RELAYS{$name}{no_listen}; }

# Does it take minutes for 100,000 messages?
sub slow { my ($class, $name) = @_; return $RELAYS{$name}{slow}; }

# Lines for postgresql.conf.
sub server_conf
{
	my ($class, $name, $listen) = @_;

	return $listen ? $RELAYS{$name}{listen_conf} // '' : '';
}

# name, playground; window = 1000; poll_ms = 100; listen = 0: with its database
# telling it of new messages
sub new
{
	my ($class, %args) = @_;
	my $kind = $RELAYS{ $args{name} } // croak "there is no relay $args{name}";

	croak "$args{name} cannot listen" if $args{listen} && $kind->{no_listen};
	return bless {
		window => 1000,
		poll_ms => 100,
		listen => 0,
		%args,
		kind => $kind,
		home => $ENV{OUTBOX_RELAYS} // abs_path(dirname(__FILE__) . '/../../relays'),
		dir => File::Temp::tempdir("relay-$args{name}-XXXXXX", TMPDIR => 1, CLEANUP => 1),
	}, $class;
}

#
# the database
#

# Its schema; once in a database.
sub set_up
{
	my ($self) = @_;

	my ($interpreter, $program) = @{ $self->{kind}{schema} // [] };
	my $home = "$self->{home}/$self->{name}";
	my $script = "\\set window $self->{window}\n\\set poll_ms $self->{poll_ms}\n";

	if ($program)
	{
		my ($status, $text) = $self->{playground}->broker->capture({},
			$interpreter, "$self->{home}/$program", $self->{listen} ? '--listen' : ());

		croak "$program: $text" if $status != 0;
		$script .= "$text\n";
	}
	$script .= "\\i $home/schema.sql\n";
	$script .= "\\i $home/schema_listen.sql\n" if $self->{listen} && -e "$home/schema_listen.sql";
	$self->{playground}->sql($script);
	return;
}

# Messages of $size bytes in one transaction.
sub enqueue_many
{
	my ($self, $count, $size, $key) = @_;

	$self->{playground}->sql(<<"END");
SELECT $self->{name}.relay_enqueue_many($count, '$key', decode(repeat('78', $size), 'hex'));
ANALYZE;
END
	return;
}

# The statement that enqueues so many messages; the payload of number i is an expression.
sub enqueue_statement
{
	my ($self, $count, $key, $payload) = @_;

	return "SELECT $self->{name}.relay_enqueue('$key', ARRAY(SELECT $payload FROM generate_series(1, $count) i))";
}

# How many messages are not recorded as delivered.
sub pending
{
	my ($self) = @_;

	return $self->{playground}->sql("SELECT $self->{name}.relay_pending()");
}

#
# the processes
#

# Returns when it is connected and about to begin.
sub start
{
	my ($self) = @_;
	my ($interpreter, $program) = @{ $self->{kind}{command} };
	my $log = $self->log;

	$self->{kind}{start}->($self) if $self->{kind}{start};
	unlink $log;
	push @{ $self->{processes} }, Outbox::Process->start(
		name => "relay $self->{name}",
		log => $log,
		command => [
			$interpreter, "$self->{home}/$program",
			'--pg', $self->_conninfo . " dbname=@{[ $self->{playground}->dbname ]}",
			'--amqp', $self->{playground}->broker->uri,
			'--window', $self->{window},
			'--poll-ms', $self->{poll_ms},
			$self->{listen} ? '--listen' : ()
		]);
	wait_until(
		"relay $self->{name} to be ready",
		sub {
			$self->running or croak "relay $self->{name} did not start:\n" . $self->log_tail;
			return $self->log_text =~ /^ready$/m;
		},
		30, 5);
	return;
}

sub _conninfo
{
	my ($self) = @_;
	my %psql = $self->{playground}->psql_arguments;

	return "host=$psql{'-h'} user=$psql{'-U'} application_name=relay";
}

# PgQ's daemon, which makes the batches.
sub _start_ticker
{
	my ($self) = @_;
	my $period = $self->{poll_ms} / 1000;

	open my $out, '>', "$self->{dir}/pgqd.ini" or croak "pgqd.ini: $!";
	print $out <<"END";
[pgqd]
base_connstr = @{[ $self->_conninfo ]}
database_list = @{[ $self->{playground}->dbname ]}
pidfile = $self->{dir}/pgqd.pid
ticker_period = $period
retry_period = 5
check_period = 5
END
	close $out or croak "pgqd.ini: $!";
	push @{ $self->{processes} }, Outbox::Process->start(
		name => 'pgqd',
		log => "$self->{dir}/pgqd.log",
		command => [ 'pgqd', "$self->{dir}/pgqd.ini" ]);
	return;
}

sub running
{
	my ($self) = @_;
	my @processes = @{ $self->{processes} // [] };

	return @processes && @processes == grep { $_->running } @processes;
}

# Ask it to leave; dies if that does not happen in good order.  busy: it has more to do
# than it can; it may leave as it likes, or have to be killed.
sub stop
{
	my ($self, %args) = @_;

	for my $process (reverse splice @{ $self->{processes} // [] })
	{
		# pgqd leaves in order on this one
		$process->signal($process->{name} eq 'pgqd' ? 'INT' : 'TERM');
		my $status = eval { $process->wait_exit(30) };

		if (defined $status)
		{
			croak "$process->{name} ended with status $status:\n" . $self->log_tail if $status != 0 && !$args{busy};
		}
		elsif ($args{busy}) { $process->kill9; }
		else { die $@; }
	}
	return;
}

sub log { return "$_[0]{dir}/relay.log"; }

sub log_text
{
	my ($self) = @_;

	open my $in, '<', $self->log or return '';
	my $text = do { local $/; <$in> } // '';
	close $in;
	return $text;
}

# What an error message says of it.
sub log_tail
{
	my ($self) = @_;

	return substr $self->log_text, -2000;
}

sub pids { return map { $_->pid } @{ $_[0]{processes} // [] }; }

# CPU that its processes have used so far, with their children.
sub cpu_seconds
{
	my ($self) = @_;

	return sum0(map { Bench::cpu_seconds($_) } $self->pids);
}

# Until all messages are recorded as delivered; returns the seconds that took.  To count
# them in a large table is work, on the cores that the relay needs: so it looks again
# when half of what is left should be done, once a hundredth is.  (PgQ has one batch
# here, done as a whole, and its count may be off by one event.)
sub wait_delivered
{
	my ($self, $count, $timeout) = @_;
	my $start = time();

	while ((my $pending = $self->pending) > 0)
	{
		my $elapsed = time() - $start;
		my $seconds_left = $pending < 0.99 * $count ? $pending * $elapsed / ($count - $pending) : 0;

		croak "relay $self->{name} has ended:\n" . $self->log_tail unless $self->running;
		croak "relay $self->{name} has $pending of $count messages left after $timeout s" if $elapsed > $timeout;
		sleep(minimum(maximum($seconds_left / 2, 0.02), 5));
	}
	return time() - $start;
}

1;
