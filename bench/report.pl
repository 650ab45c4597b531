#!/usr/bin/perl
#
# ./dev bench report: write the tables of docs/performance.md anew from bench/results.
# With --check: say what is not as it should be, and fail.
#
# A table stands between two comments; the first names the benchmark, optionally with a
# pattern of the cases, and the figures:
#
#	<!-- table drain /200 B/: rate, cpu_us -->
#	<!-- end -->
#
# The last column compares outbox with the others in the first figure.  Rates are better
# when they are higher (outbox / it), anything else when it is lower (it / outbox): so
# it is always the factor by which outbox is better.

use strict;
use warnings FATAL => 'all';

use Bench qw(median minimum maximum thousands);

use constant PAGE => 'docs/performance.md';

my %higher_is_better = map { $_ => 1 } ("rate", "tps", "rows_per_second", "last / first");

# At most three digits that mean something, but whole numbers whole.
sub number
{
	my ($value) = @_;
	my $size = abs $value;

	return thousands(sprintf '%.0f', $value) if $size >= 100;
	return sprintf('%.1f', $value) =~ s/\.0$//r if $size >= 10;
	return sprintf('%.2f', $value) =~ s/\.?0+$//r if $size >= 0.1 || $size == 0;
	return sprintf '%.2g', $value;
}

sub cell
{
	my @values = @_;

	return '' if !@values;
	my ($median, $min, $max) = map { number($_) } median(@values), minimum(@values), maximum(@values);
	return $min eq $max ? $median : "$median ($min to $max)";
}

sub factor
{
	my ($figure, $ours, $other) = @_;

	return '' if !@$ours || !@$other;
	my ($o, $t) = (median(@$ours), median(@$other));
	($o, $t) = ($t, $o) if !$higher_is_better{$figure};
	return $t == 0 ? '' : sprintf $o / $t >= 10 ? '%.0f' : '%.2f', $o / $t;
}

# A name that sorts by the numbers in it; "10 000" is one.
sub sortable
{
	my ($name) = @_;

	return $name =~ s/(?<=\d) (?=\d{3}\b)//gr =~ s/(\d+)/sprintf '%012d', $1/ger;
}

sub table
{
	my ($name, $pattern, @figures) = @_;
	my $bench = Bench->new($name);
	my @lines = ([ 'case', 'contender', @figures, 'turns', 'outbox better by' ]);    # than others: its launcher is none

	for my $case (sort { sortable($a) cmp sortable($b) } grep { /(?:$pattern)/ } $bench->cases)
	{
		my $first = 1;
		my @ours = $bench->values($case, 'outbox', $figures[0]);

		for my $contender ($bench->contenders($case))
		{
			my @values = map { [ $bench->values($case, $contender, $_) ] } @figures;

			push @lines, [
				$first ? $case : '', $contender, (map { cell(@$_) } @values),
				scalar @{ $values[0] },
				$contender =~ /^outbox/ ? '' : factor($figures[0], \@ours, $values[0])
			];
			$first = 0;
		}
	}
	return "Not measured yet.\n" if @lines == 1;
	splice @lines, 1, 0, [ map { '---' } @{ $lines[0] } ];
	my %commands = map { $_->[1] => 1 } grep { $_->[0] =~ /(?:$pattern)/ } $bench->notes;
	return join('', map { '| ' . join(' | ', @$_) . " |\n" } @lines)
	  . "\n" . join('', map { "`$_`  \n" =~ s/^`(\S+) /$1 `/r } sort keys %commands);
}

open my $in, '<', PAGE or die PAGE . ": $!";
my $old = do { local $/; <$in> };
close $in;
(my $new = $old) =~ s{(<!-- table (\w+)(?: /(.+?)/)?: (.+?) -->\n).*?(<!-- end -->)}
	{ my ($begin, $name, $pattern, $figures, $end) = ($1, $2, $3 // '', $4, $5);
	  $begin . table($name, $pattern, split /, /, $figures) . $end }gse;
exit 0 if $new eq $old;
if (@ARGV && $ARGV[0] eq '--check')
{
	print PAGE . " does not agree with bench/results: run ./dev bench report\n";
	exit 1;
}
open my $out, '>', PAGE or die PAGE . ": $!";
print $out $new;
close $out or die PAGE . ": $!";
