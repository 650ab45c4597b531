#!/usr/bin/perl
#
# ./dev chaos SECONDS [--seed N] [--only PATTERN]: disturb PostgreSQL, RabbitMQ and
# what is between them at random for so long, in those ways whose names match, then
# say whether anything was lost, invented, reordered, or stuck.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use IO::Handle;

# the test library that is loaded next takes both for its log
my $screen;
BEGIN { open $screen, '>&', \*STDOUT or die "stdout: $!"; $screen->autoflush(1); }

use Outbox::Chaos;

GetOptions(
	'seed=i' => \(my $seed = int(rand(1_000_000))),
	'only=s' => \(my $only = '.'),
	'quiet' => \my $quiet)
  && @ARGV == 1 && $ARGV[0] =~ /^\d+$/
  or do { print $screen "usage: ./dev chaos SECONDS [--seed N] [--only PATTERN] [--quiet]\n"; exit 2; };

print $screen "seed $seed; starting PostgreSQL and RabbitMQ ...\n";
my $chaos = Outbox::Chaos->new(
	seed => $seed,
	seconds => $ARGV[0],
	only => qr/$only/,
	log => sub { print $screen "$_[0]\n" unless $quiet; print "$_[0]\n"; });
my $failed = 0;

$chaos->run;
print $screen "\n", map { "$_\n" } $chaos->table, '';
for my $check ($chaos->checks)
{
	my ($ok, $name, $against) = @$check;

	print $screen $ok ? 'yes: ' : 'NO:  ', $name, "\n";
	next if $ok;
	$failed++;
	print $screen "       $_\n" for Outbox::Chaos::Verdict::examples(@$against);
}
print $screen $failed ? "\n$failed violations; again with --seed $seed\n" : "\nAll is well.\n";
exit($failed ? 1 : 0);
