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
SELECT outbox.enqueue('', 'bench', repeat('x', 200));
COMMIT;
END
close $out;

sub transactions_per_second
{
	my (undef, $text) = $broker->capture({ $playground->psql_environment }, 'pgbench', '-n',
		'-c', $clients, '-j', $clients, '-T', $seconds, '-f', $script);

	$text =~ /tps = ([\d.]+) \(without initial/ or die "pgbench: $text\n";
	return $1;
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

# Where the worker shall connect to, and the condition that it has noticed.
sub connect_to
{
	my ($uri, $condition) = @_;

	$playground->sql("ALTER SYSTEM SET outbox.uri = '$uri'");
	$playground->sql('SELECT pg_reload_conf()');
	$playground->wait_sql('the worker to follow outbox.uri',
		"SELECT $condition FROM outbox.worker_status()");
	return;
}

my %states = (
	unresolvable => [
		sub { connect_to('amqp://guest:guest@broker.outbox.example/', q{state = 'connecting'}) },
		sub { connect_to($broker->uri, 'connected_since IS NOT NULL') } ],
	healthy => [ sub { }, sub { } ],
	frozen => [ sub { $broker->sigstop }, sub { $broker->sigcont } ],
	blocked => [ sub { $broker->set_memory_alarm }, sub { $broker->clear_memory_alarm } ]);
my @names = qw(healthy frozen blocked);
push @names, 'unresolvable' if $ENV{OUTBOX_NAMESERVER};    # see ./dev
my %results;

printf "transactions per second, %d clients, %d s each\n\n", $clients, $seconds;
printf "%5s" . ('%14s' x @names) . "\n", 'round', @names;
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
	printf "%5d" . ('%14.0f' x @names) . "\n", $round, @now{@names};
}
my $healthy = median(@{ $results{healthy} });
printf "\nmedian: healthy %.0f", $healthy;
for my $name (@names[ 1 .. $#names ])
{
	my $median = median(@{ $results{$name} });

	printf '; %s %.0f, ratio %.2f', $name, $median, $median / $healthy;
}
print "\n";
