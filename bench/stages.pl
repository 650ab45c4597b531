#!/usr/bin/perl
#
# ./dev bench stages [RELAY...]: which stage of a message's way is busy while outbox, a
# plain librabbitmq program, or one of the others (bench/relays) publishes as fast as it
# can.  The stages of RabbitMQ are Erlang processes, which one core at a time can run; the
# busiest of them is the limit.
#
#	publisher, reader, channel, queue, wal, segments, writer
#	       share of the time that its process runs or waits for a core: of the publisher
#	       its CPU alone, of the others by looking often
#	syncs, sync_ms, write_ms   of the broker per thousand messages: calls of fsync(), and
#	       the time in fsync() and in write() (classic queues only)
#
# Needs the relays

use strict;
use warnings FATAL => 'all';

use Getopt::Long;
use POSIX ();

use Bench;
use Bench::Drain;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

GetOptions(
	'count=i' => \(my $count = 100_000),
	'size=i' => \(my $size = 200),
	'rounds=i' => \(my $rounds = 3),
	'queues=s' => \(my $types = 'classic,quorum,stream')) or exit 2;

# What processes of this initial call are.
my %stage = (
	rabbit_reader => 'reader',
	rabbit_channel => 'channel',
	rabbit_prequeue => 'queue',
	ra_server_proc => 'queue',
	ra_log_wal => 'wal',
	ra_log_segment_writer => 'segments',
	osiris_writer => 'queue',
	rabbit_writer => 'writer');

# How often a process of each kind runs or could, in LOOKS looks, 10 ms apart.
use constant LOOKS => 50;
my $look = <<'END' =~ s/LOOKS/LOOKS/er;
lists:foldl(fun(_, All) ->
	timer:sleep(10),
	lists:foldl(fun(Pid, Seen) ->
		case erlang:process_info(Pid, [status, dictionary]) of
			[{status, Status}, {dictionary, Dictionary}] when Status =/= waiting, Status =/= suspended ->
				{Module, _, _} = proplists:get_value('$initial_call', Dictionary, {other, x, 0}),
				maps:update_with(Module, fun(N) -> N + 1 end, 1, Seen);
			_ -> Seen
		end
	end, All, erlang:processes() -- [self()])
end, #{}, lists:seq(1, LOOKS))
END

# Look again and again; each time one line of "module looks" pairs.
sub start_looking
{
	my ($drain, $file) = @_;

	unlink $file;
	return Outbox::Process->start_code(
		name => 'looking',
		log => $file,
		code => sub {
			while (1)
			{
				my $answer = eval { $drain->broker->eval_erlang($look) } // next;

				print join(' ', $answer =~ /(\w+) => (\d+)/g), "\n";
			}
		});
}

sub shares
{
	my ($file) = @_;
	my %seen;

	open my $in, '<', $file or die "$file: $!";
	my @lines = <$in>;
	close $in;
	die "nobody had the time to look: a larger --count\n" if !@lines;
	for my $line (@lines)
	{
		my %looks = split ' ', $line;

		$seen{ $stage{$_} // 'others' } += $looks{$_} for keys %looks;
	}
	return map { $_ => $seen{$_} / @lines / LOOKS } grep { $_ ne 'others' } keys %seen;
}

my $file_work = <<'END';
list_to_tuple([proplists:get_value(Key, file_handle_cache_stats:get(), 0) ||
	Key <- [{io_sync, count}, {io_sync, time}, {io_write, time}]])
END

# What the broker's processes have done to files so far; milliseconds, but for the calls.
sub file_work
{
	my ($drain) = @_;
	# a node this busy does not let everybody in at once
	my $answer = wait_until('the broker to tell of its files',
		sub { eval { $drain->broker->eval_erlang($file_work) } });
	my ($syncs, $sync_us, $write_us) = $answer =~ /^\{ok,\s*\{(\d+),\s*(\d+),\s*(\d+)\}/
	  or die "file_handle_cache_stats: $answer\n";

	return (syncs => $syncs, sync_ms => $sync_us / 1000, write_ms => $write_us / 1000);
}

my $bench = Bench->new('stages');

for my $type (split /,/, $types)
{
	my ($drain, $file, %work);
	my $watch = sub {
		my %before = file_work($drain);
		my $looking = start_looking($drain, $file);

		return sub {
			$looking->kill9;
			%work = file_work($drain);
			$work{$_} = ($work{$_} - $before{$_}) * 1000 / $count for keys %work;
		};
	};
	my $turn = sub {
		my ($figures) = @_;

		$figures->{publisher} = delete($figures->{cpu_us}) * $figures->{rate} / 1e6;
		return { %$figures, shares($file), $type eq 'classic' ? %work : () };
	};

	$drain = Bench::Drain->new(
		count => $count,
		size => $size,
		window => 1000,
		queue => $type,
		watch => $watch);
	$file = $drain->broker->dir . '/looks';
	$bench->turns($drain->case, $rounds,
		[ plain => sub { $turn->($drain->plain) } ],
		[ outbox => sub { $turn->($drain->outbox) } ],
		map { my $relay = $_; [ $relay => sub { $turn->($drain->relay($relay, $count)) } ] } @ARGV);
}
$bench->finish(figures => [qw(rate publisher reader channel queue wal segments writer syncs sync_ms write_ms)]);
