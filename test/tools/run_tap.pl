#!/usr/bin/perl
#
# run_tap.pl: run TAP test files, --jobs at a time, each with a time limit of its
# own, and write how many tests passed and failed to --counts.
#
#   run_tap.pl --counts FILE --limit SECONDS --jobs N --exec 'command and arguments' FILES
#
# A file that ends in an error, or that runs fewer tests than it planned, counts
# as one more failure.

use strict;
use warnings;

use Getopt::Long;
use TAP::Formatter::Console;
use TAP::Harness;

GetOptions(
	'counts=s' => \my $counts,
	'limit=i' => \(my $limit = 300),
	'jobs=i' => \(my $jobs = 1),
	'exec=s' => \(my $exec = $^X),
	'verbose' => \my $verbose) or exit 2;

my @command = ('timeout', '--kill-after=20', $limit, split ' ', $exec);
my $harness = TAP::Harness->new({
	exec => \@command,
	jobs => $jobs,
	merge => 0,
	timer => 1,
	failures => 1,
	verbosity => $verbose ? 1 : 0,
});
my $aggregator = $harness->runtests(@ARGV);
my ($passed, $failed) = (0, 0);

for my $parser ($aggregator->parsers)
{
	my $bad = $parser->failed;

	$passed += $parser->passed;
	$failed += $bad;
	$failed++ if !$bad && $parser->has_problems;
}
if (defined $counts)
{
	open my $out, '>>', $counts or die "$counts: $!";
	print $out "$passed $failed\n";
	close $out or die "$counts: $!";
}
exit($failed ? 1 : 0);
