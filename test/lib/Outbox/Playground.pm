package Outbox::Playground;

# A private PostgreSQL with outbox and a private RabbitMQ, for people and for
# measurements: ./dev demo, ./dev shell, ./dev bench.  (Tests use Node.pm.)

use strict;
use warnings FATAL => 'all';

use Carp;
use File::Temp;
use POSIX ();

use Outbox::Broker;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

# dbname = shop; conf: lines for postgresql.conf; schedulers: of the broker;
# broker: another one, which runs
sub new
{
	my ($class, %args) = @_;
	my $dir = File::Temp::tempdir('playground-XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $self = bless {
		dir => $dir,
		dbname => $args{dbname} // 'shop',
		broker => $args{broker} // Outbox::Broker->new(schedulers => $args{schedulers} // 2),
	}, $class;

	$self->{broker}->launch unless $args{broker};    # takes its time; initdb meanwhile
	$self->_run('initdb', '-D', "$dir/data", '-A', 'trust', '-U', 'postgres', '-N');
	open my $conf, '>>', "$dir/data/postgresql.conf" or croak "postgresql.conf: $!";
	print $conf <<"END";
shared_preload_libraries = 'outbox'
outbox.uri = '@{[ $self->{broker}->uri ]}'
listen_addresses = ''
unix_socket_directories = '$dir'
max_worker_processes = 16
max_prepared_transactions = 10
shared_buffers = 128MB
max_wal_size = 4GB
log_line_prefix = '%m [%p] '
END
	print $conf $args{conf} if defined $args{conf};
	close $conf or croak "postgresql.conf: $!";
	$self->start_postgres;
	$self->sql("CREATE DATABASE $self->{dbname}", 'postgres');
	$self->sql('CREATE EXTENSION outbox');
	$self->{broker}->wait_ready unless $args{broker};
	return $self;
}

sub broker { return $_[0]{broker}; }
sub dbname { return $_[0]{dbname}; }
sub psql_arguments { return ('-h', $_[0]{dir}, '-U', 'postgres', '-d', $_[0]{dbname}); }
sub psql_environment { return (PGHOST => $_[0]{dir}, PGUSER => 'postgres', PGDATABASE => $_[0]{dbname}); }
sub log { return "$_[0]{dir}/postgresql.log"; }

sub _run
{
	my ($self, @command) = @_;

	system('sh', '-c', 'exec "$@" >>"$0" 2>&1 </dev/null', "$self->{dir}/commands.log", @command) == 0
	  or croak "@command failed; see $self->{dir}/commands.log";
	return;
}

sub start_postgres
{
	my ($self) = @_;

	$self->{server} = Outbox::Process->start(
		name => 'PostgreSQL',
		log => $self->log,
		command => [ 'postgres', '-D', "$self->{dir}/data" ]);
	wait_until(
		'PostgreSQL to answer',
		sub {
			$self->{server}->running or croak "PostgreSQL did not start:\n" . $self->log_tail;
			return system('pg_isready', '-q', '-h', $self->{dir}) == 0;
		},
		60, 20);
	return;
}

# kill -9 of the postmaster; its children see that and leave.
sub kill_postgres
{
	my ($self) = @_;
	my $pid = $self->{server}->pid;
	my @children;

	for my $file (glob '/proc/[0-9]*/stat')
	{
		open my $in, '<', $file or next;
		my $stat = <$in> // '';
		close $in;
		push @children, $1 if $stat =~ /^(\d+) \(.*\) [^Z] (\d+) / && $2 == $pid;
	}
	$self->{server}->kill9;
	wait_until('the processes of PostgreSQL to end',
		sub { !grep { _runs($_) } @children }, 30, 20);
	return;
}

sub _runs
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/stat" or return 0;
	my $stat = <$in> // '';
	close $in;
	return $stat =~ /^\d+ \(.*\) [^Z] /;
}

sub log_tail
{
	my ($self) = @_;

	open my $in, '<', $self->log or return '';
	my @lines = <$in>;
	close $in;
	splice @lines, 0, -30 if @lines > 30;
	return join '', @lines;
}

# Run a script in psql; returns its output, dies if it fails.
sub sql
{
	my ($self, $script, $dbname) = @_;
	my ($out, $error) = $self->try_sql($script, $dbname);

	croak "psql: $error" if defined $error;
	return $out;
}

# The same; returns output and error, undef if there was none.
sub try_sql
{
	my ($self, $script, $dbname) = @_;
	my $file = "$self->{dir}/script.sql";

	open my $in, '>', $file or croak "$file: $!";
	print $in $script;
	close $in or croak "$file: $!";
	my $pid = open(my $pipe, '-|') // croak "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDERR, '>', "$file.error";
		{
			exec 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-h', $self->{dir}, '-U', 'postgres',
			  '-d', $dbname // $self->{dbname}, '-f', $file;
		}
		POSIX::_exit(127);
	}
	my $out = do { local $/; <$pipe> } // '';
	close $pipe;
	my $status = $?;
	chomp $out;
	return ($out, undef) if $status == 0;
	open my $err, '<', "$file.error" or croak "$file.error: $!";
	my $error = do { local $/; <$err> };
	return ($out, $error || 'failed');
}

sub wait_sql
{
	my ($self, $what, $query, $timeout) = @_;

	return wait_until($what, sub { ($self->try_sql($query))[0] eq 't' }, $timeout, 20);
}

sub wait_drained
{
	my ($self, $timeout) = @_;

	return $self->wait_sql(
		'every message to be confirmed',
		'SELECT pending = 0 AND deferred = 0 AND in_flight = 0 FROM outbox.status',
		$timeout);
}

sub wait_connected
{
	my ($self, $timeout) = @_;

	return $self->wait_sql('the worker to be connected',
		'SELECT connected_since IS NOT NULL FROM outbox.status', $timeout);
}

# What people play with: orders, an exchange, a queue, and a consumer that writes
# down what arrives.
sub make_shop
{
	my ($self) = @_;
	my $broker = $self->{broker};

	$broker->amqp('declare-exchange', 'shop', 'topic');
	$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
	$broker->amqp('bind', 'orders', 'shop', 'order.*');
	$self->sql(<<'END');
CREATE TABLE orders (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	item text NOT NULL,
	placed_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION place_order(item text) RETURNS uuid LANGUAGE sql AS $$
	WITH placed AS (INSERT INTO orders (item) VALUES (item) RETURNING *)
	SELECT outbox.enqueue('shop', 'order.created', to_jsonb(placed), message_id => placed.id)
	FROM placed;
$$;
END
	$self->{consumer} = $broker->start_consumer('orders');
	return $self->{consumer};
}

# Another database of the same servers, without outbox; for as long as these are.
sub create_database
{
	my ($self, $dbname) = @_;

	$self->sql("CREATE DATABASE $dbname", 'postgres');
	return bless { %$self{qw(dir broker)}, dbname => $dbname }, ref $self;
}

sub drop_database
{
	my ($self) = @_;
	my $slots = "pg_replication_slots WHERE database = '$self->{dbname}'";

	# who was killed may have left sessions behind
	$self->wait_sql('nobody to use its replication slots',
		"SELECT count(pg_terminate_backend(active_pid)) = 0 FROM $slots AND active");
	$self->sql(<<"END", 'postgres');
SELECT pg_drop_replication_slot(slot_name) FROM $slots;
DROP DATABASE $self->{dbname} WITH (FORCE);
END
	return;
}

# Hand the terminal to psql until the user leaves it.
sub interactive_psql
{
	my ($self) = @_;

	local $SIG{INT} = 'IGNORE';
	local $ENV{RECEIVED} = $self->{consumer}{file};
	local $ENV{AMQP_URI} = $self->{broker}->uri;
	local $ENV{PATH} = ($ENV{OUTBOX_TOOLS} // '.') . ":$ENV{PATH}";
	system 'psql', '-X', $self->psql_arguments;
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($@, $?, $!);
	$self->{server}->signal('QUIT') if $self->{server};
	return;
}

1;
