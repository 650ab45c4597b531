package Bench;

# What all benchmarks have in common: contenders take turns, every figure of every
# turn goes into a file, and what is printed is made from that file alone.
#
#	my $bench = Bench->new('drain');
#	$bench->turns('classic queue 200 B', $rounds, [ plain => sub { ...; return { rate => 1 } } ],
#		[ outbox => sub { ... } ]);
#	$bench->finish;
#
# The file is bench/results/NAME.csv, one line for each figure: case, contender, turn,
# figure, value.  A run replaces the cases that it measured and keeps the others; with
# Bench->new('drain', more => 1) it adds rounds to them, for what takes too long in one go.

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';
use POSIX ();

our @EXPORT_OK = qw(median minimum maximum percentile cpu_seconds run_seconds thousands);

my @COLUMNS = qw(case contender turn figure value);

sub new
{
	my ($class, $name, %args) = @_;
	my $self = bless {
		name => $name,
		file => "bench/results/$name.csv",
		more => $args{more},
		measured => {},
		rows => [],
		notes => []
	}, $class;

	$| = 1;
	$self->_read if -e $self->{file};
	return $self;
}

sub _read
{
	my ($self) = @_;

	open my $in, '<', $self->{file} or croak "$self->{file}: $!";
	while (my $line = <$in>)
	{
		chomp $line;
		if ($line =~ /^# ([^:]+): (.*)/) { push @{ $self->{notes} }, [ $1, $2 ]; }
		elsif ($line ne join ',', @COLUMNS)
		{
			my %row;
			@row{@COLUMNS} = split /,/, $line;
			push @{ $self->{rows} }, \%row;
		}
	}
	close $in;
	return;
}

sub _write
{
	my ($self) = @_;

	open my $out, '>', "$self->{file}.new" or croak "$self->{file}.new: $!";
	print $out "# $_->[0]: $_->[1]\n" for @{ $self->{notes} };
	print $out join(',', @COLUMNS), "\n";
	print $out join(',', @{$_}{@COLUMNS}), "\n" for @{ $self->{rows} };
	close $out or croak "$self->{file}.new: $!";
	rename "$self->{file}.new", $self->{file} or croak "$self->{file}: $!";
	return;
}

# What was measured before in a case is forgotten as it is measured again, unless this
# run adds to it.
sub _begin_case
{
	my ($self, $case) = @_;

	croak "a case has no comma or colon in its name: $case" if $case =~ /[,:]/;
	return if $self->{measured}{$case}++;
	if (!$self->{more})
	{
		$self->{rows} = [ grep { $_->{case} ne $case } @{ $self->{rows} } ];
		$self->{notes} = [ grep { $_->[0] ne $case } @{ $self->{notes} } ];
	}
	push @{ $self->{notes} }, [ $case, _command() ];
	return;
}

sub _command
{
	my @words = ($0 =~ s{^.*/|\.pl$}{}gr, split / /, $ENV{OUTBOX_BENCH_ARGUMENTS} // '');

	return POSIX::strftime('%Y-%m-%d', gmtime) . " ./dev bench @words";
}

# One figure of one turn; it is in the file after turns() or finish().
sub record
{
	my ($self, $case, $contender, $turn, $figure, $value) = @_;

	$self->_begin_case($case);
	push @{ $self->{rows} },
	  { case => $case, contender => $contender, turn => $turn, figure => $figure, value => $value };
	return;
}

# Each contender is [ name => code ]; the code runs one turn and returns a hash of
# figures.  Every other round goes the other way round, so that nobody is always first.
sub turns
{
	my ($self, $case, $rounds, @contenders) = @_;
	my @earlier = $self->{more} ? map { $_->{turn} } grep { $_->{case} eq $case } @{ $self->{rows} } : ();
	my $before = maximum(0, @earlier);

	print "\n$case\n";
	for my $round ($before + 1 .. $before + $rounds)
	{
		for my $contender ($round % 2 ? @contenders : reverse @contenders)
		{
			my ($name, $code) = @$contender;
			my $figures = $code->();

			printf "%5d  %-24s", $round, $name;
			for my $figure (sort keys %$figures)
			{
				printf '  %s %s', $figure, _short($figures->{$figure});
				$self->record($case, $name, $round, $figure, $figures->{$figure});
			}
			print "\n";
			$self->_write;
		}
	}
	return;
}

# All values of a figure, in the order of the turns; and these turns.
sub values { my ($self, @of) = @_; return map { $_->{value} } $self->_rows_of(@of); }
sub turns_of { my ($self, @of) = @_; return map { $_->{turn} } $self->_rows_of(@of); }

sub _rows_of
{
	my ($self, $case, $contender, $figure) = @_;

	return grep { $_->{case} eq $case && $_->{contender} eq $contender && $_->{figure} eq $figure }
	  @{ $self->{rows} };
}

sub _distinct
{
	my %seen;

	return grep { !$seen{$_}++ } @_;
}

sub cases { return _distinct(map { $_->{case} } @{ $_[0]{rows} }); }
sub notes { return @{ $_[0]{notes} }; }

sub contenders
{
	my ($self, $case) = @_;

	return _distinct(map { $_->{contender} } grep { $_->{case} eq $case } @{ $self->{rows} });
}

sub figures
{
	my ($self, $case) = @_;

	return _distinct(map { $_->{figure} } grep { $_->{case} eq $case } @{ $self->{rows} });
}

# The table of one case: median, minimum and maximum, and outbox as a ratio to each of
# the others, for the named figures or all.
sub table
{
	my ($self, $case, %args) = @_;
	my @lines = ([ 'case', 'figure', 'contender', 'median', 'min', 'max', 'turns', 'outbox / it' ]);

	for my $figure (@{ $args{figures} // [ $self->figures($case) ] })
	{
		my @own = $self->values($case, 'outbox', $figure);

		for my $contender ($self->contenders($case))
		{
			my @values = $self->values($case, $contender, $figure) or next;
			my $ratio = '';

			$ratio = sprintf '%.2f', median(@own) / median(@values)
			  if $contender ne 'outbox' && @own && median(@values) != 0;
			push @lines, [
				$case, $figure, $contender,
				(map { _short($_) } median(@values), minimum(@values), maximum(@values)),
				scalar @values, $ratio
			];
		}
	}
	return @lines;
}

# Print what was measured in this run; cases: only these.
sub finish
{
	my ($self, %args) = @_;

	$self->_write;
	for my $case (grep { $self->{measured}{$_} } @{ $args{cases} // [ $self->cases ] })
	{
		print "\n";
		print_table($self->table($case, %args));
	}
	return;
}

sub print_table
{
	my @lines = @_;
	my @widths = map { my $column = $_; maximum(map { length $_->[$column] } @lines) } 0 .. $#{ $lines[0] };

	for my $line (@lines)
	{
		print join('  ', map { sprintf '%-*s', $widths[$_], $line->[$_] } 0 .. $#widths) =~ s/ +$//r, "\n";
	}
	return;
}

sub _short
{
	my ($value) = @_;

	return $value if $value !~ /^-?[\d.]+(?:e[-+]?\d+)?$/;
	return thousands(sprintf '%.0f', $value) if abs $value >= 1000;
	return sprintf('%.4g', $value);
}

sub thousands
{
	my ($number) = @_;

	1 while $number =~ s/^(-?\d+)(\d{3})/$1,$2/;
	return $number;
}

sub percentile
{
	my ($share, @values) = @_;
	my @sorted = sort { $a <=> $b } @values;

	return $sorted[ POSIX::ceil($share * @sorted) - 1 ];
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return ($sorted[ $#sorted / 2 ] + $sorted[ @sorted / 2 ]) / 2;
}

sub minimum { return (sort { $a <=> $b } @_)[0]; }
sub maximum { return (sort { $b <=> $a } @_)[0]; }

# Seconds of CPU that a process has used, and those of its children that ended.
sub cpu_seconds
{
	my ($pid) = @_;

	open my $in, '<', "/proc/$pid/stat" or return 0;
	my @fields = split / /, (<$in> =~ s/^.*\) //r);
	close $in;
	my $ticks = 0;
	$ticks += $fields[$_] for 11 .. 14;
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# Seconds that the threads of a process have run: finer than ticks, without children.
sub run_seconds
{
	my ($pid) = @_;
	my $ns = 0;

	for my $file (glob "/proc/$pid/task/*/schedstat")
	{
		open my $in, '<', $file or next;
		$ns += (split / /, <$in> // '0')[0];
		close $in;
	}
	return $ns / 1e9;
}

1;
