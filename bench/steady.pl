#!/usr/bin/perl
#
# ./dev bench steady: the steady state.  pgbench commits messages of 200 bytes at a
# fixed mean rate, at random moments; how long until a consumer has them?
#
#	commit   from the moment the client has the reply to its transaction
#	send     from the moment it sent the statement: the same and the transaction
#
# in ms, with the consumer's arrival on the same clock.  `commit` may be negative, and
# nothing is clamped: a message may leave as soon as its commit is durable and visible,
# and can be at the consumer before the reply is at the client.  What pgbench itself
# was late (its schedule lag) is in neither.
#
# `plain` has no database: a librabbitmq program publishes at random moments, and `commit`
# counts from when it does.  That is what RabbitMQ, the consumer and the machine take.
#
# A transaction is one statement and, up to 2,000 a second, one message; above that ten
# messages, since the machine may not commit so many transactions beside everything
# else.  A short turn of outbox that does not count comes first, and the first two seconds
# of each are not counted; at 10 messages a second p99.9 is therefore the slowest of all.
# The queue is classic, durable and new in each turn, messages are persistent, commits
# flushed.
#
#	behind       messages not with the consumer as the writing ended
#	lost         committed, and not delivered when nothing was pending any more
#	undelivered  the same where something was still pending after --drain seconds
#	cpu_us       of the worker, or of the relay without its server processes, per message
#
# Needs the relays (bench/relays).

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use Time::HiRes qw(sleep time);

use Bench qw(percentile run_seconds);
use Bench::Relay;
use Outbox::Playground;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

use constant WARM_UP => 2_000_000;    # microseconds
use constant FIRST_TURN_S => 3;

GetOptions(
	'rates=s' => \(my $rates = '10,1000,10000'),
	'seconds=i' => \(my $seconds = 20),
	'rounds=i' => \(my $rounds = 3),
	'drain=i' => \(my $drain = 30),
	'contenders=s' => \my $wanted,
	'conf=s' => \my @conf) or exit 2;

#
# the contenders: outbox, plain, each relay polling, each relay that can listen
#

sub contender_names
{
	return split /,/, $wanted if defined $wanted;
	return ('outbox', 'plain', map { ("$_ poll", Bench::Relay->can_listen($_) ? "$_ listen" : ()) } Bench::Relay->names);
}

my @names = contender_names();

$| = 1;
print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new(
	dbname => 'bench',
	schedulers => `nproc` + 0,
	conf => join '', (map { "$_\n" } @conf), server_conf());
my $broker = $playground->broker;
my $dir = $broker->dir;
$playground->wait_connected;

sub server_conf
{
	my %lines = map { $_ => 1 } map { Bench::Relay->server_conf(/^(\w+) (\w+)/ ? ($1, $2 eq 'listen') : ()) }
	  grep { !/^(?:outbox|plain)$/ } @names;

	return keys %lines;
}

sub outbox
{
	my $pid = $playground->sql('SELECT worker_pid FROM outbox.worker_status()');

	return {
		playground => $playground,
		statement => sub { "SELECT count(outbox.enqueue('', 'bench', $_[1])) FROM generate_series(1, $_[0]) i" },
		pending => sub { $playground->sql('SELECT pending + deferred FROM outbox.status') },
		cpu => sub { run_seconds($pid) },
		stop => sub { }
	};
}

# Has a database of its own, and anew in each turn.
sub relay
{
	my ($name, $mode) = @_;
	my $database = $playground->create_database('relay');
	my $relay = Bench::Relay->new(
		name => $name,
		playground => $database,
		poll_ms => 100,
		listen => $mode eq 'listen');

	$relay->set_up;
	$relay->start;
	return {
		playground => $database,
		statement => sub { $relay->enqueue_statement($_[0], 'bench', $_[1]) },
		pending => sub { $relay->pending },
		cpu => sub { $relay->cpu_seconds },
		stop => sub { $relay->stop(busy => !$_[0]); $database->drop_database }
	};
}

sub contender
{
	my ($name) = @_;

	return $name eq 'outbox' ? outbox() : relay(split / /, $name);
}

#
# one turn
#

sub per_transaction { return $_[0] > 2000 ? 10 : 1; }

# pgbench's log of a turn: per transaction its client, its number with that client,
# the time since it was scheduled, ..., its end, and how late it began.
sub write_messages
{
	my ($rate, $contender, $time) = @_;
	my $per = per_transaction($rate);
	my $payload = q{convert_to(rpad(concat_ws(' ', :client_id::text, :n::text, i::text, ''), 200, 'x'), 'UTF8')};

	open my $out, '>', "$dir/steady.sql" or die "steady.sql: $!";
	print $out "\\set n :n + 1\n", $contender->{statement}->($per, $payload), ";\n";
	close $out or die "steady.sql: $!";
	unlink glob "$dir/steady.log.*";
	my ($status, $text) = $broker->capture({ $contender->{playground}->psql_environment }, 'pgbench', '-n',
		'-M', 'prepared', '-D', 'n=0', '-c', $rate < 100 ? 2 : 16, '-T', $time,
		'--rate', $rate / $per, '-l', "--log-prefix=$dir/steady.log", '-f', "$dir/steady.sql");
	die "pgbench: $text\n" if $status != 0 || $text =~ /ERROR|aborted/;
	return;
}

# "client number" => [ when it was sent, when its reply came ], in microseconds
sub read_commits
{
	my %commits;

	for my $file (glob "$dir/steady.log.*")
	{
		open my $in, '<', $file or die "$file: $!";
		while (my $line = <$in>)
		{
			my ($client, $number, $since_scheduled, undef, $s, $us, $lag) = split ' ', $line;
			my $end = $s * 1_000_000 + $us;

			$commits{"$client $number"} = [ $end - ($since_scheduled - $lag), $end ];
		}
		close $in;
	}
	return \%commits;
}

# Everything that is on its way arrives; false if that takes too long.
sub wait_arrived
{
	my ($contender) = @_;
	my $end = time() + $drain;
	my $size = -1;

	while ($contender->{pending}->() > 0)
	{
		return 0 if time() > $end;
		sleep 0.1;
	}
	# the consumer writes when it is quiet
	while ($size != -s "$dir/arrivals")
	{
		$size = -s "$dir/arrivals";
		sleep 0.5;
	}
	return 1;
}

sub start_consumer
{
	eval { $broker->amqp('delete-queue', 'bench') };
	$broker->amqp('declare-queue', 'bench', 'classic', 'durable');
	unlink "$dir/arrivals";
	my $consumer = Outbox::Process->start(
		name => 'consumer',
		log => "$dir/consumer.log",
		command => [ 'bench/consumer', '--uri', $broker->uri, '--file', "$dir/arrivals" ]);

	wait_until('the consumer to be there', sub { -e "$dir/arrivals" }, 10, 10);
	sleep 0.3;
	return $consumer;
}

# What the log and the arrivals say together.
sub latencies
{
	my ($rate) = @_;
	my $commits = read_commits();
	my $per = per_transaction($rate);
	my $committed = $per * keys %$commits;
	my ($begin, $end) = (sort { $a <=> $b } map { $_->[1] } values %$commits)[ 0, -1 ];
	my (%seen, @commit, @send);
	my ($duplicates, $in_time) = (0, 0);

	open my $in, '<', "$dir/arrivals" or die "arrivals: $!";
	while (my $line = <$in>)
	{
		my ($at, $client, $number, $i) = split ' ', $line;
		my $commit = $commits->{"$client $number"} // die "a message that was never committed: $line";

		if ($seen{"$client $number $i"}++) { $duplicates++; next; }
		$in_time++ if $at <= $end;
		next if $commit->[1] < $begin + WARM_UP;
		push @commit, ($at - $commit->[1]) / 1000;
		push @send, ($at - $commit->[0]) / 1000;
	}
	close $in;
	return { behind => $committed, missing => $committed - keys %seen, messages => scalar keys %seen } if !@commit;
	@commit = sort { $a <=> $b } @commit;
	@send = sort { $a <=> $b } @send;
	return {
		(map { ("commit_p$_" => percentile($_ / 100, @commit), "send_p$_" => percentile($_ / 100, @send)) }
			  50, 99, 99.9),
		commit_min => $commit[0],
		commit_max => $commit[-1],
		send_max => $send[-1],
		rate => $committed / ($end - $begin) * 1e6,
		behind => $committed - $in_time,
		duplicates => $duplicates,
		missing => $committed - keys %seen,
		messages => scalar keys %seen
	};
}

sub plain_turn
{
	my ($rate, $time) = @_;
	my $consumer = start_consumer();
	my ($status, $text) = $broker->capture({}, 'bench/plain_publisher', '--uri', $broker->uri,
		'--rate', $rate, '--count', $rate * $time);

	die "plain_publisher: $text\n" if $status != 0;
	wait_arrived({ pending => sub { 0 } });
	$consumer->stop;

	open my $in, '<', "$dir/arrivals" or die "arrivals: $!";
	my @times = map { [ (split)[ 0, 1 ] ] } <$in>;
	close $in;
	my @commit = map { ($_->[0] - $_->[1]) / 1000 } grep { $_->[1] >= $times[0][1] + WARM_UP } @times;
	return {
		(map { ("commit_p$_" => percentile($_ / 100, @commit)) } 50, 99, 99.9),
		lost => $rate * $time - @times,
		messages => scalar @times,
		$text =~ /cpu_us_per_message ([\d.]+)/ ? (cpu_us => $1) : ()
	};
}

# Writing takes so many seconds.
sub turn
{
	my ($rate, $name, $time) = @_;

	return plain_turn($rate, $time) if $name eq 'plain';
	my $contender = contender($name);
	my $consumer = start_consumer();
	my $cpu = $contender->{cpu}->();

	write_messages($rate, $contender, $time);
	my $drained = wait_arrived($contender);
	$cpu = $contender->{cpu}->() - $cpu;
	$consumer->stop;
	$contender->{stop}->($drained);

	my $figures = latencies($rate);
	$figures->{ $drained ? 'lost' : 'undelivered' } = delete $figures->{missing};
	$figures->{cpu_us} = $cpu * 1e6 / $figures->{messages} if $figures->{messages} > 0;
	return $figures;
}

my $bench = Bench->new('steady');

for my $rate (split /,/, $rates)
{
	my $case = "$rate a second";

	turn($rate, 'outbox', FIRST_TURN_S);
	$case .= ' by ' . per_transaction($rate) if per_transaction($rate) > 1;
	$case .= ' (' . join(' and ', @names) . ')' if defined $wanted;
	$bench->turns($case, $rounds, map { my $name = $_; [ $name => sub { turn($rate, $name, $seconds) } ] } @names);
}
$bench->finish(figures => [
	(map { my $from = $_; map { "${from}_$_" } qw(p50 p99 p99.9 max) } qw(commit send)),
	qw(commit_min rate behind lost undelivered duplicates cpu_us)
]);
