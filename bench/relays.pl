#!/usr/bin/perl
#
# ./dev bench relays [NAME...]: how fast other ways to get messages from PostgreSQL to
# RabbitMQ (bench/relays) publish what is already committed, and that they lose nothing.
#
# Needs the relays

use strict;
use warnings FATAL => 'all';

use Getopt::Long;

use Bench::Relay;
use Outbox::Playground;

GetOptions(
	'count=i' => \(my $count = 20_000),
	'size=i' => \(my $size = 200),
	'window=i' => \(my $window = 1000),
	'poll-ms=i' => \(my $poll_ms = 100),
	'listen' => \my $listen,
	'queue=s' => \(my $type = 'classic')) or exit 2;

my @names = grep { !$listen || Bench::Relay->can_listen($_) } @ARGV ? @ARGV : Bench::Relay->names;

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	schedulers => `nproc` + 0,
	conf => join '', map { Bench::Relay->server_conf($_, $listen) } @names);
my $broker = $playground->broker;

# Rate, and microseconds of CPU per message: of the relay, of its server processes.
sub drain
{
	my ($relay) = @_;

	eval { $broker->amqp('delete-queue', 'bench') };
	$broker->amqp('declare-queue', 'bench', $type, 'durable');
	$relay->set_up;
	$relay->enqueue_many($count, $size, 'bench');
	$playground->sql('CHECKPOINT');
	$relay->start;
	my @before = ($relay->cpu_seconds, $relay->server_cpu_seconds);
	my $seconds = $relay->wait_delivered('bench', $count);
	my @cpu = map { ($_ - shift @before) * 1e6 / $count } $relay->cpu_seconds, $relay->server_cpu_seconds;
	$relay->stop;
	my $stored = $broker->amqp('count', 'bench');

	die "the queue has $stored messages instead of $count\n" if $stored != $count;
	return ($count / $seconds, @cpu);
}

printf "%d messages of %d bytes, %s queue, window %d\n\n", $count, $size, $type, $window;
printf "%-15s %10s  %s\n", '', 'messages/s', 'us of CPU per message: relay, PostgreSQL for it';
for my $name (@names)
{
	my $relay = Bench::Relay->new(
		name => $name,
		playground => $playground,
		window => $window,
		poll_ms => $poll_ms,
		listen => $listen);

	printf "%-15s %10.0f  %8.1f %8.1f\n", $name, drain($relay);
}
