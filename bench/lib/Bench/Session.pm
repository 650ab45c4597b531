package Bench::Session;

# A psql that stays: for a question every few milliseconds, or for a transaction that is
# kept open.

use strict;
use warnings FATAL => 'all';

use Carp;
use IPC::Open2;

my $END = 'end of the answer';

sub new
{
	my ($class, $playground, $application) = @_;
	my $self = bless { owner => $$ }, $class;

	local %ENV = (%ENV, $playground->psql_environment, PGAPPNAME => $application // 'bench');
	$self->{pid} = open2($self->{out}, $self->{in}, 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1');
	$self->sql('SELECT 1');
	return $self;
}

# One statement; its rows, each with | between the columns.
sub sql
{
	my ($self, $statement) = @_;
	my ($in, $out) = @{$self}{qw(in out)};
	my @lines;

	print $in "$statement;\n\\echo $END\n";
	$in->flush;
	while (1)
	{
		my $line = <$out> // croak "psql has ended at: $statement";

		chomp $line;
		return wantarray ? @lines : $lines[0] if $line eq $END;
		push @lines, $line;
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;

	return if $self->{owner} != $$;
	local ($@, $?, $!);
	close $self->{in};
	waitpid $self->{pid}, 0;
	return;
}

1;
