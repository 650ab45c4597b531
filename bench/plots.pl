#!/usr/bin/perl
#
# ./dev bench plots [NAME...]: pictures for docs/img, of what is in bench/results.  Each
# has a function here that makes lines of numbers for gnuplot, one block for each
# contender, and bench/plots/NAME.gp that draws them.

use strict;
use warnings FATAL => 'all';

use File::Temp;

use Bench qw(maximum median minimum);

my %PLOTS = (bloat => \&bloat, relays => \&relays, steady => \&steady);

# Seconds, thousand messages per second, MB, dead tuples.  A rate is that of several
# seconds, and the same number of them for both: what the relay has deleted is known with
# a delay of up to one.
my $RATES = 60;

sub bloat
{
	my $bench = Bench->new('bloat');
	my $step = maximum(3, int(maximum(map { scalar $bench->values('over time', $_, 'bytes') } qw(outbox node)) / $RATES));
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
		my ($from, $delivered, $samples) = (0, 0, 0);

		$text .= "\n\n" if $text ne '';
		for my $time (sort { $a <=> $b } keys %sample)
		{
			my $now = $sample{$time};
			my $rate = '-';

			if (++$samples % $step == 0)
			{
				$rate = sprintf '%.2f', ($now->{delivered} - $delivered) / ($time - $from) / 1000;
				($from, $delivered) = ($time, $now->{delivered});
			}
			$text .= sprintf "%.1f %s %.1f %d\n", $time, $rate, $now->{bytes} / 2**20, $now->{dead};
		}
	}
	return $text;
}

# Type of queue, thousand messages of 200 bytes per second: median, smallest and largest turn.
sub relays
{
	my $bench = Bench->new('relays');
	my @blocks;

	for my $contender (qw(outbox node pgq python transactional))
	{
		my $block = '';

		for my $case (grep { / 200 B$/ } $bench->cases)
		{
			my @rates = map { $_ / 1000 } $bench->values($case, $contender, 'rate');

			$block .= sprintf qq("%s" %s\n), $case =~ s/ queue 200 B//r =~ s/ /\\n/r,
			  @rates ? sprintf('%.2f %.2f %.2f', median(@rates), minimum(@rates), maximum(@rates)) : '0 0 0';
		}
		push @blocks, $block;
	}
	return join "\n\n", @blocks;
}

# Contender, milliseconds from commit to consumer: half of the messages, 99 of 100; one
# block for each rate.
sub steady
{
	my $bench = Bench->new('steady');
	my @blocks;

	for my $case ('10 a second', '1000 a second')
	{
		my $block = '';

		for my $contender ($bench->contenders($case))
		{
			my ($half, $most) = map { median($bench->values($case, $contender, "commit_$_")) } qw(p50 p99);

			$block .= sprintf qq("%s" %.3f %.3f\n), $contender, $half, $most;
		}
		push @blocks, $block;
	}
	return join "\n\n", @blocks;
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
