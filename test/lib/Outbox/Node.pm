package Outbox::Node;

# A PostgreSQL server with outbox preloaded and pointed at a broker.  Everything
# that PostgreSQL::Test::Cluster can do, and what tests of outbox need besides.

use strict;
use warnings FATAL => 'all';

use parent -norequire, 'PostgreSQL::Test::Cluster';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use Outbox::Wait qw(wait_until);

# Outbox::Node->create('name', broker => $broker | uri => $uri, conf => $text,
#                      extension => 1, streaming => 0, faultpoints => 0)
#
# A running server; with extension (the default) its database postgres has
# outbox, and its worker is connected.  With faultpoints it looks for armed ones.
sub create
{
	my ($class, $name, %args) = @_;
	my $self = $class->prepare($name, %args);

	$self->start;
	if ($args{extension} // 1)
	{
		$self->safe_psql('postgres', 'CREATE EXTENSION outbox');
		$self->wait_connected if $args{broker};
	}
	return $self;
}

# The same, not yet started.
sub prepare
{
	my ($class, $name, %args) = @_;
	my $self = PostgreSQL::Test::Cluster->new($name);
	my $uri = $args{uri} // ($args{broker} ? $args{broker}->uri : '');

	bless $self, $class;
	$ENV{OUTBOX_FAULTPOINTS} = 1 if $args{faultpoints};
	$self->init(allows_streaming => $args{streaming} // 0);
	$self->append_conf('postgresql.conf', <<"END");
shared_preload_libraries = 'outbox'
outbox.uri = '$uri'
fsync = on
restart_after_crash = on
log_statement = none
log_min_messages = info
max_connections = 50
max_worker_processes = 16
max_prepared_transactions = 200
shared_buffers = 64MB
max_wal_size = 1GB
autovacuum_naptime = 5s
END
	$self->append_conf('postgresql.conf', $args{conf}) if defined $args{conf};
	return $self;
}

#
# status
#

# One value, or undef where the server or the extension is not there.
sub value
{
	my ($self, $sql, $dbname) = @_;
	my ($out, $err) = ('', '');

	# where the server refuses, psql may be gone before it has read the query
	my $rc = eval {
		$self->psql($dbname // 'postgres', $sql, stdout => \$out, stderr => \$err);
	} // -1;

	return $rc == 0 ? $out : undef;
}

sub status
{
	my ($self, $column, $dbname) = @_;

	return $self->value("SELECT $column FROM outbox.status", $dbname);
}

sub worker_pid
{
	my ($self, $dbname) = @_;
	my $pid = $self->status('worker_pid', $dbname);

	return $pid ? $pid + 0 : undef;
}

# Wait until a query returns what is expected ('t' unless told).
sub wait_for
{
	my ($self, $what, $sql, %args) = @_;
	my $expected = $args{expected} // 't';
	my $last;

	return eval {
		wait_until(
			$what,
			sub {
				$last = $self->value($sql, $args{dbname});
				return defined $last && $last eq $expected;
			},
			$args{timeout},
			$args{poll_ms});
	} || die "$@  query: $sql\n  last answer: "
	  . ($last // '(none)')
	  . "\n  status: "
	  . ($self->value('SELECT s FROM outbox.status s', $args{dbname}) // '(none)') . "\n";
}

sub wait_connected
{
	my ($self, %args) = @_;

	return $self->wait_for('the worker to be connected to the broker',
		'SELECT connected_since IS NOT NULL FROM outbox.status', %args);
}

# Nothing left to publish.
sub wait_drained
{
	my ($self, %args) = @_;

	return $self->wait_for('every message to be confirmed',
		'SELECT pending = 0 AND deferred = 0 AND in_flight = 0 FROM outbox.status',
		%args);
}

sub wait_answering
{
	my ($self, %args) = @_;

	return $self->wait_for('the server to answer', 'SELECT true', %args);
}

#
# faults
#

# Pids of the server's processes, without the postmaster.
sub children
{
	my ($self) = @_;
	my $postmaster = $self->{_pid} or return;
	my @pids;

	for my $file (glob '/proc/[0-9]*/stat')
	{
		open my $in, '<', $file or next;
		my $stat = <$in> // '';
		close $in;
		push @pids, $1 if $stat =~ /^(\d+) \(.*\) \S (\d+) / && $2 == $postmaster;
	}
	return @pids;
}

# Pids of the server's processes whose title matches: what pg_stat_activity would
# say, also while the server answers nobody.
sub titled
{
	my ($self, $title) = @_;

	return grep { _title($_) =~ $title } $self->children;
}

sub _title
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/cmdline" or return '';
	my $title = do { local $/; <$in> } // '';
	close $in;
	return $title =~ tr/\0/ /r;
}

# Learn from the data directory who the postmaster is: another process may have
# started or stopped the server.
sub learn_pid
{
	my ($self) = @_;

	$self->{_pid} = undef;
	open my $in, '<', $self->data_dir . '/postmaster.pid' or return;
	my ($pid) = (<$in> // '') =~ /^(\d+)/;
	close $in;
	$self->{_pid} = $pid if $pid && -d "/proc/$pid" && !_is_zombie($pid);
	return $self->{_pid};
}

# pg_ctl for a process that is not the test itself; see learn_pid().  True if it
# succeeded.
sub pg_ctl
{
	my ($self, @arguments) = @_;

	return PostgreSQL::Test::Utils::system_log('pg_ctl', '-D', $self->data_dir, '-l', $self->logfile,
		@arguments) == 0;
}

# Kill the postmaster and wait until its children have noticed and left: each of
# them must, and until then no new server can start on the same data.
sub kill9
{
	my ($self) = @_;
	my @children = $self->children;
	my $postmaster = $self->{_pid};

	$self->SUPER::kill9;
	wait_until(
		'all processes of the killed server to end',
		sub {
			@children = grep { -d "/proc/$_" && !_is_zombie($_) } @children;
			return !@children;
		},
		30, 20);

	# where init is slow to take notice of an orphan's end, the postmaster is still
	# there as a zombie, and a new one would take it for alive
	unlink $self->data_dir . '/postmaster.pid',
	  $self->host . '/.s.PGSQL.' . $self->port . '.lock'
	  if -d "/proc/$postmaster" && _is_zombie($postmaster);
	return;
}

# Let the next process that passes a fault point (src/faultpoint.c), or passes it
# for the (skip + 1)th time, carry out an action: kill, wait, oom or an SQLSTATE.
sub arm
{
	my ($self, $point, $action, $skip) = @_;
	my $file = $self->data_dir . '/outbox.faultpoint';

	unlink "$file.done";
	open my $out, '>', "$file.new" or die "$file.new: $!";
	print $out join(' ', $point, $action, $skip // 0), "\n";
	close $out or die "$file.new: $!";
	rename "$file.new", $file or die "$file: $!";
	return;
}

# When the armed fault was carried out, in microseconds; 0 if it was not yet.
sub fault_time
{
	my ($self) = @_;

	open my $in, '<', $self->data_dir . '/outbox.faultpoint.done' or return 0;
	my $time = <$in> // 0;
	close $in;
	return $time + 0;
}

sub disarm
{
	my ($self) = @_;

	unlink $self->data_dir . '/outbox.faultpoint';
	return;
}

sub _is_zombie
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/stat" or return 1;
	my $stat = <$in> // '';
	close $in;
	return $stat =~ /^\d+ \(.*\) Z /;
}

1;
