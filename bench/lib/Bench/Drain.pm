package Bench::Drain;

# One turn of outbox or of somebody else: so many messages, all committed, go to a new
# queue.  Either nobody consumes, and what is in it at the end is counted; or a consumer
# takes them as they come, and all must have reached it.

use strict;
use warnings FATAL => 'all';

use POSIX ();
use Time::HiRes qw(sleep);

use Bench qw(minimum run_seconds);
use Bench::Relay;
use Outbox::Playground;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

use constant {
	QUEUE => 'bench',
	WARM_UP => 1 / 5,      # of a turn
	QUIET_S => 1,
	QUIET_SHARE => 0.1,    # of a core
};

# count, size (bytes), window (messages unconfirmed at most), queue (its type); consume: is
# there a consumer?  conf: more lines for postgresql.conf; watch: called when publishing
# begins, returns what is to be called at its end
sub new
{
	my ($class, %args) = @_;
	my $in_flight_kb = POSIX::ceil($args{window} * ($args{size} + 1024) / 1024);
	my $self = bless { watch => sub { return sub { } }, %args }, $class;

	# the window of the others has no limit in bytes; memory as PostgreSQL's manual suggests
	$self->{playground} = Outbox::Playground->new(
		dbname => 'bench',
		schedulers => `nproc` + 0,
		conf => join '', map { "$_\n" } "outbox.in_flight_messages = $args{window}",
		"outbox.in_flight_bytes = ${in_flight_kb}kB",
		'shared_buffers = ' . int(memory_mb('MemTotal') / 4) . 'MB', @{ $args{conf} // [] });
	$self->{playground}->wait_connected;
	$self->warm_up;
	return $self;
}

# What is done for the first time takes longer: a short turn of each that does not count.
sub warm_up
{
	my ($self) = @_;

	local $self->{count} = POSIX::ceil($self->{count} * WARM_UP);
	local $self->{watch} = sub { return sub { } };
	$self->$_ for qw(plain outbox);
	return;
}

sub memory_mb
{
	my ($which) = @_;

	open my $in, '<', '/proc/meminfo' or die "/proc/meminfo: $!";
	my ($kb) = map { /^$which:\s+(\d+)/ ? $1 : () } <$in>;
	close $in;
	return $kb / 1024;
}

# What the results call it.
sub case
{
	my ($self) = @_;

	return join ' ', "$self->{queue} queue $self->{size} B", $self->{consume} ? 'consumed' : (),
	  @{ $self->{conf} // [] };
}

sub broker { return $_[0]{playground}->broker; }

# Whoever has to prepare its messages leaves the broker time to clear up after the turn
# before; so all wait until it has done that.
sub wait_quiet
{
	my ($self) = @_;

	wait_until('the broker to have nothing to do', sub {
		my $used = run_seconds($self->broker->pid);

		sleep QUIET_S;
		return (run_seconds($self->broker->pid) - $used) / QUIET_S < QUIET_SHARE;
	}, 120, 0);
	return;
}

# Before a turn: the broker is at rest, what was stored on the disk that it shares is
# written, and the memory that it will take is there.  A virtual machine may have given
# back to its host what is free; the first to touch it then waits, eight times as long for
# each page, and that would be the broker in the turn of whoever left it the colder memory.
sub settle
{
	my ($self) = @_;
	my $mb = minimum(1024 + 4 * $self->{count} * ($self->{size} + 1024) / 2**20, memory_mb('MemAvailable') / 2);

	system('sync') == 0 or die "sync failed\n";
	system($^X, '-e', 'my @held = map { chr($_ % 128) x 2**20 } 1 .. $ARGV[0]', int $mb) == 0
	  or die "touching $mb MB failed\n";
	$self->wait_quiet;
	return;
}

sub new_queue
{
	my ($self, $count) = @_;

	$self->broker->amqp('declare-queue', QUEUE, $self->{queue}, 'durable');
	$self->{consumer} = Outbox::Process->start(
		name => 'consumer',
		log => $self->broker->dir . '/consumer.log',
		command => [ 'bench/consumer', '--uri', $self->broker->uri, '--queue', QUEUE, '--count', $count ])
	  if $self->{consume};
	return;
}

# All have arrived, and none twice; and the queue goes.  A stream only estimates how much is
# in it.
sub end_queue
{
	my ($self, $count) = @_;

	if ($self->{consume})
	{
		my $status = $self->{consumer}->wait_exit(60);

		die "the consumer ended with status $status\n" if $status != 0;
		$count = 0;
	}
	my $stored = $self->{queue} eq 'stream' ? $count : $self->broker->amqp('count', QUEUE);

	die "the queue has $stored messages instead of $count\n" if $stored != $count;
	$self->broker->amqp('delete-queue', QUEUE);
	return;
}

# Messages a second, and microseconds of CPU for each.
sub figures
{
	my ($count, $seconds, $cpu) = @_;

	return { rate => $count / $seconds, cpu_us => $cpu * 1e6 / $count };
}

# What is enqueued while the worker is paused, from resume() to the last confirm; the CPU
# until all of that is recorded.
sub outbox
{
	my ($self) = @_;
	my $playground = $self->{playground};

	$self->new_queue($self->{count});
	$playground->sql('SELECT outbox.pause()');
	$playground->wait_sql('the worker to pause', "SELECT state = 'paused' FROM outbox.status");
	$playground->sql(<<"END");
SELECT count(outbox.enqueue('', '@{[QUEUE]}', payload)) FROM generate_series(1, $self->{count}),
	(SELECT decode(repeat('78', $self->{size}), 'hex') AS payload) p;
CHECKPOINT;
END
	my $pid = $playground->sql('SELECT worker_pid FROM outbox.status');
	$self->settle;
	my $end = $self->{watch}->();
	my $cpu = run_seconds($pid);
	my $seconds = $playground->sql(<<"SQL");
SELECT confirmed + $self->{count} AS target FROM outbox.worker_status() \\gset
SET bench.target = :'target';
SELECT clock_timestamp() AS start \\gset
SELECT outbox.resume() \\g /dev/null
DO \$\$
BEGIN
	WHILE (SELECT confirmed FROM outbox.worker_status()) < current_setting('bench.target')::bigint
	LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END
\$\$;
SELECT extract(epoch FROM clock_timestamp() - :'start');
SQL
	$end->();
	$playground->wait_drained(60);
	$cpu = run_seconds($pid) - $cpu;
	$self->end_queue($self->{count});
	return figures($self->{count}, $seconds, $cpu);
}

# A plain librabbitmq program that has the same messages in memory.
sub plain
{
	my ($self) = @_;

	$self->new_queue($self->{count});
	$self->settle;
	my $end = $self->{watch}->();
	my (undef, $out) = $self->broker->capture({}, 'bench/plain_publisher',
		'--uri', $self->broker->uri, '--key', QUEUE, '--count', $self->{count},
		'--size', $self->{size}, '--window', $self->{window});
	my ($seconds, $cpu) = $out =~ /seconds ([\d.]+) .*cpu_us_per_message ([\d.]+)/
	  or die "plain_publisher: $out\n";
	$end->();
	$self->end_queue($self->{count});
	return figures($self->{count}, $seconds, $cpu * $self->{count} / 1e6);
}

# A relay (Bench::Relay), in a database that is new in each turn.  The CPU is that of its
# own processes.  It gets at most so many messages.
sub relay
{
	my ($self, $name, $at_most) = @_;
	my $count = minimum($self->{count}, $at_most);
	my $database = $self->{playground}->create_database('relay');
	my $relay = Bench::Relay->new(name => $name, playground => $database, window => $self->{window});

	$self->new_queue($count);
	$relay->set_up;
	$relay->enqueue_many($count, $self->{size}, QUEUE);
	$database->sql('CHECKPOINT');
	$self->settle;
	$relay->start;
	my $end = $self->{watch}->();
	my $cpu = $relay->cpu_seconds;
	my $seconds = $relay->wait_delivered($count, 600);
	$cpu = $relay->cpu_seconds - $cpu;
	$end->();
	$relay->stop;
	$self->end_queue($count);
	$database->drop_database;
	return figures($count, $seconds, $cpu);
}

1;
