#!/usr/bin/perl
#
# ./dev bench relays [NAME...]: how fast others (bench/relays) publish what is already
# committed, beside outbox, as in `drain`.  A slow one gets at most --slow messages: 500,000
# would take it up to twelve minutes in each turn.  With --more its rounds add to those of
# earlier runs.
#
# Needs the relays

use strict;
use warnings FATAL => 'all';

use Getopt::Long;

use Bench;
use Bench::Drain;
use Bench::Relay;

GetOptions(
	'count=i' => \(my $count = 500_000),
	'slow=i' => \(my $slow = 20_000),
	'sizes=s' => \(my $sizes = '200'),
	'more' => \my $more,
	'rounds=i' => \(my $rounds = 5),
	'window=i' => \(my $window = 1000),
	'queues=s' => \(my $types = 'classic')) or exit 2;

my $bench = Bench->new('relays', more => $more);

for my $type (split /,/, $types)
{
	for my $size (split /,/, $sizes)
	{
		my $drain = Bench::Drain->new(
			count => $count,
			size => $size,
			window => $window,
			queue => $type);

		my $contender = sub {
			my ($name) = @_;
			my $at_most = Bench::Relay->slow($name) ? $slow : $count;

			return [ $name => sub { $drain->relay($name, $at_most) } ];
		};

		$bench->turns($drain->case, $rounds, [ outbox => sub { $drain->outbox } ],
			map { $contender->($_) } @ARGV ? @ARGV : Bench::Relay->names);
	}
}
$bench->finish;
