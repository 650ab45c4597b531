#!/usr/bin/perl
#
# ./dev bench commits: how fast transactions that enqueue commit while the broker
# does not answer, against the same with a healthy broker.  The states take turns;
# the median of the rounds counts.

use strict;
use warnings FATAL => 'all';

use Getopt::Long;

use Outbox::Playground;

GetOptions(
	'clients=i' => \(my $clients = 2),
	'seconds=i' => \(my $seconds = 5),
	'rounds=i' => \(my $rounds = 5)) or exit 2;

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(dbname => 'bench');
my $broker = $playground->broker;
$playground->wait_connected;
$broker->amqp('declare-queue', 'bench', 'classic', 'durable', 'x-max-length=100000');
$playground->sql('CREATE TABLE orders (id bigserial PRIMARY KEY, customer int, placed_at timestamptz DEFAULT now())');

my $script = $broker->dir . '/commits.sql';
open my $out, '>', $script or die "$script: $!";
print $out <<'END';
\set customer random(1, 10000)
BEGIN;
INSERT INTO orders (customer) VALUES (:customer);
SELECT outbox.enqueue('', 'bench', repeat('x', 200), ordering_key => NULL);
COMMIT;
END
close $out;

sub transactions_per_second
{
	my (undef, $text) = $broker->capture({}, 'pgbench', $playground->psql_arguments, '-n',
		'-c', $clients, '-j', $clients, '-T', $seconds, '-f', $script);

	$text =~ /tps = ([\d.]+) \(without initial/ or die "pgbench: $text\n";
	return $1;
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

my %states = (
	healthy => [ sub { }, sub { } ],
	frozen => [ sub { $broker->sigstop }, sub { $broker->sigcont } ],
	blocked => [ sub { $broker->set_memory_alarm }, sub { $broker->clear_memory_alarm } ]);
my @names = qw(healthy frozen blocked);
my %results;

printf "transactions per second, %d clients, %d s each\n\n", $clients, $seconds;
printf "%5s" . ('%12s' x @names) . "\n", 'round', @names;
for my $round (1 .. $rounds)
{
	my %now;

	for my $name ($round % 2 ? @names : reverse @names)
	{
		$states{$name}[0]->();
		$now{$name} = transactions_per_second();
		push @{ $results{$name} }, $now{$name};
		$states{$name}[1]->();
		$playground->wait_connected;
		$playground->wait_drained(120);
	}
	printf "%5d" . ('%12.0f' x @names) . "\n", $round, @now{@names};
}
printf "\nmedian: healthy %.0f; frozen %.0f, ratio %.2f; blocked %.0f, ratio %.2f\n",
  median(@{ $results{healthy} }),
  map { (median(@{ $results{$_} }), median(@{ $results{$_} }) / median(@{ $results{healthy} })) }
  qw(frozen blocked);
