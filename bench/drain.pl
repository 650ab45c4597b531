#!/usr/bin/perl
#
# ./dev bench drain: how fast outbox publishes what is already committed.  The opponent
# is a plain librabbitmq program that publishes the same messages from memory, with the
# same window.  With --more its rounds add to those of earlier runs.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;

use Bench;
use Bench::Drain;

GetOptions(
	'count=i' => \(my $count = 500_000),
	'size=i' => \(my $size = 200),
	'more' => \my $more,
	'rounds=i' => \(my $rounds = 5),
	'window=i' => \(my $window = 1000),
	'queue=s' => \(my $type = 'classic'),
	'consume' => \my $consume,
	'conf=s' => \my @conf) or exit 2;

my $bench = Bench->new('drain', more => $more);
my $drain = Bench::Drain->new(
	count => $count,
	size => $size,
	window => $window,
	queue => $type,
	consume => $consume,
	conf => \@conf);

$bench->turns($drain->case, $rounds,
	[ plain => sub { $drain->plain } ],
	[ outbox => sub { $drain->outbox } ]);
$bench->finish;
