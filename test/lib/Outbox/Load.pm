package Outbox::Load;

# Writers that commit orders at random and survive the death of the server.
#
# They keep no record: what committed is what the table `orders` says (Sets.pm).
# Each writer is a pgbench with one client, started anew whenever it loses its
# server; a resolver commits or rolls back what the writers left prepared.

use strict;
use warnings FATAL => 'all';

use File::Temp;
use POSIX qw(:sys_wait_h);
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(usleep);

use Outbox::Process;
use Outbox::Wait qw(wait_until);

# Scripts and how often each is drawn: one transaction in ten rolls back.
my %SCRIPTS = (
	single => [ 5, <<'END' ],
BEGIN;
SELECT place_order(:writer);
COMMIT;
END
	several => [ 2, <<'END' ],
\set pause random(0, 2000)
BEGIN;
SELECT place_order(:writer);
\sleep :pause us
SELECT place_order(:writer), place_order(:writer);
COMMIT;
END
	rollback => [ 1, <<'END' ],
BEGIN;
SELECT place_order(:writer);
SELECT place_order(:writer);
ROLLBACK;
END
	savepoint => [ 1, <<'END' ],
BEGIN;
SELECT place_order(:writer);
SAVEPOINT s;
SELECT place_order(:writer);
ROLLBACK TO SAVEPOINT s;
SELECT place_order(:writer);
SAVEPOINT kept;
SELECT place_order(:writer);
RELEASE SAVEPOINT kept;
COMMIT;
END
	# committed later, by somebody else, so in no order with what the writer
	# does meanwhile
	prepared => [ 1, <<'END' ],
SELECT nextval('prepared_seq') AS number \gset
BEGIN;
SELECT place_order(:writer, false);
PREPARE TRANSACTION 'order_:number';
END
);

my $RESOLVE = <<'END';
SELECT format('%s PREPARED %L', CASE WHEN random() < 0.2 THEN 'ROLLBACK' ELSE 'COMMIT' END, gid)
FROM pg_prepared_xacts WHERE gid LIKE 'order_%' AND database = current_database()
ORDER BY random() LIMIT 20 \gexec
END

# node, seed; writers = 4, dbname = postgres, pause_us = 0 (mean think time)
sub new
{
	my ($class, %args) = @_;
	my $dir = File::Temp::tempdir('load-XXXXXX', DIR => $PostgreSQL::Test::Utils::log_path);
	my $self = bless {
		dir => $dir,
		stop_file => "$dir/stop",
		writers => 4,
		dbname => 'postgres',
		pause_us => 0,
		%args
	}, $class;

	for my $name (sort keys %SCRIPTS)
	{
		my ($weight, $text) = @{ $SCRIPTS{$name} };
		my $path = "$dir/$name.sql";
		$text .= "\\set think random(0, 2 * $self->{pause_us})\n\\sleep :think us\n"
		  if $self->{pause_us};
		open my $out, '>', $path or die "$path: $!";
		print $out $text;
		close $out;
		push @{ $self->{files} }, '-f', "$path\@$weight";
	}
	$self->{node}->safe_psql($self->{dbname}, 'CREATE SEQUENCE prepared_seq');
	return $self;
}

# Run the command again and again until told to stop.
sub _repeat
{
	my ($self, $log, $command, $input) = @_;

	until (-e $self->{stop_file})
	{
		my $child = fork() // die "fork: $!";
		if ($child == 0)
		{
			open STDIN, '<', $input // '/dev/null';
			open STDOUT, '>>', $log;
			open STDERR, '>&', \*STDOUT;
			$ENV{PGAPPNAME} = $command->[0];    # or it would be the name of the test
			{ exec @$command; }
			POSIX::_exit(127);
		}
		while (waitpid($child, WNOHANG) == 0)
		{
			kill 'TERM', $child if -e $self->{stop_file};
			usleep(20_000);
		}
		usleep(50_000);    # the server may be down; try again soon
	}
	return;
}

sub start
{
	my ($self) = @_;
	my $node = $self->{node};
	my @connection = ('-h', $node->host, '-p', $node->port);

	for my $writer (1 .. $self->{writers})
	{
		my @command = (
			'pgbench', @connection, '-n', '-c', 1, '-t', 100000000,
			'--random-seed', $self->{seed} * 100 + $writer,
			'-D', "writer=$writer", @{ $self->{files} }, $self->{dbname});
		push @{ $self->{processes} }, Outbox::Process->start_code(
			name => "writer $writer",
			code => sub { $self->_repeat("$self->{dir}/writer.$writer.log", \@command) });
	}
	my $resolve = "$self->{dir}/resolve.psql";
	open my $out, '>', $resolve or die "$resolve: $!";
	print $out $RESOLVE;
	close $out;
	push @{ $self->{processes} }, Outbox::Process->start_code(
		name => 'resolver',
		code => sub {
			$self->_repeat("$self->{dir}/resolver.log",
				[ 'psql', '-XqAt', @connection, '-d', $self->{dbname} ], $resolve);
		});
	return;
}

# Stop the writers, in the middle of whatever they are doing, and then settle
# what they left prepared.
sub stop
{
	my ($self) = @_;
	my $node = $self->{node};

	open my $out, '>', $self->{stop_file} or die "$self->{stop_file}: $!";
	close $out;
	$_->wait_exit(30) for @{ $self->{processes} };
	$node->wait_answering;
	wait_until(
		"the writers' sessions to end",
		sub {
			($node->value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")
				  // 1) == 0;
		});
	wait_until(
		'all prepared transactions to be settled',
		sub {
			eval { $node->psql($self->{dbname}, $RESOLVE) };
			return ($node->value("SELECT count(*) FROM pg_prepared_xacts") // 1) == 0;
		});
	return;
}

1;
