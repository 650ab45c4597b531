#!/usr/bin/perl
#
# ./dev bench plots [NAME...]: pictures for docs/img, of what is in bench/results.  Each
# has a function here that makes lines of numbers for gnuplot, one block for each
# contender, and bench/plots/NAME.gp that draws them.

use strict;
use warnings FATAL => 'all';

use File::Temp;

use Bench qw(maximum);

my %PLOTS = (bloat => \&bloat);

# Every so many samples in one: a picture has not as many pixels as an hour has seconds.
my $POINTS = 100;

sub bloat
{
	my $bench = Bench->new('bloat');
	my $text = '';

	for my $contender (qw(outbox node))
	{
		my %sample;

		for my $figure (qw(delivered bytes dead))
		{
			my @at = $bench->turns_of('over time', $contender, $figure);
			my @values = $bench->values('over time', $contender, $figure);

			$sample{ $at[$_] }{$figure} = $values[$_] for 0 .. $#at;
		}
		my @times = sort { $a <=> $b } keys %sample;
		my $step = int($#times / $POINTS) + 1;
		my ($from, $delivered) = (0, 0);

		$text .= "\n\n" if $text ne '';
		for (my $i = $step - 1; $i <= $#times; $i += $step)
		{
			my ($time, $now) = ($times[$i], $sample{ $times[$i] });

			$text .= sprintf "%.1f %.0f %.1f %d\n", $time, ($now->{delivered} - $delivered) / ($time - $from),
			  $now->{bytes} / 2**20, $now->{dead};
			($from, $delivered) = ($time, $now->{delivered});
		}
	}
	return $text;
}

for my $name (@ARGV ? @ARGV : sort keys %PLOTS)
{
	my $make = $PLOTS{$name} // die "there is no plot $name\n";
	my $data = File::Temp->new;
	my $image = "docs/img/$name.svg";

	if (!-e "bench/results/$name.csv")
	{
		print "$name: nothing was measured\n";
		next;
	}
	print $data $make->();
	close $data;
	system('gnuplot', '-e', "data='$data'", '-e', "image='$image'", "bench/plots/$name.gp") == 0
	  or die "gnuplot failed\n";
	printf "%s: %d bytes\n", $image, -s $image;
}
