package Outbox::Chaos;

# PostgreSQL, RabbitMQ, writers and consumers, and everything that can be done to
# them from outside, at random and overlapping; then a time without faults, and the
# question whether every message that committed has arrived, no other has, and each
# ordering key in order.
#
# So that this can be answered exactly, no queue that has messages to be counted is
# ever deleted.  What is deleted and made anew is what leads to it (an exchange, a
# binding), a queue beside it, and queues that come into being late.
#
# The truth is the table `orders` at the end: each row was inserted in the
# transaction that enqueued its message.  A quarter of the transactions commit
# asynchronously, so a crash may take some of them back.
#
# Every choice is made before the run, from the seed.  When each disturbance comes
# and what it meets also depends on how fast the machine is.
#
# This file has the plan and the run.  What can be done is a table in
# Chaos/Disturbances.pm, what it is done to is in Chaos/System.pm, what must have
# come of it in Chaos/Verdict.pm.

use strict;
use warnings FATAL => 'all';

use File::Temp;
use List::Util qw(max sum0);
use POSIX ();
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(time usleep);

use parent qw(Outbox::Chaos::System Outbox::Chaos::Disturbances Outbox::Chaos::Verdict);

use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $AT_ONCE = 4;                  # disturbances that may overlap
my $PAUSE = 0.5;                  # longest time from the start of one to that of the next
my $FLOWING = 50;                 # so many new messages show that all is well
my $BLIND = 0.5;                  # share of disturbances that come while nothing flows
my $LIMIT_MEET = 12;              # seconds until a disturbance that is_met is undone all the same
my $LIMIT_DRAIN = 60;

# Exit status of a disturbance that found nothing to disturb.
my $MISSED = 3;

#
# the plan
#

# seed, seconds; log => sub { line about what is done }; only => pattern of names
sub new
{
	my ($class, %args) = @_;
	my $self = bless {
		seconds => 60,
		log => sub { },
		only => qr/./,
		in_flight => 200,         # outbox.in_flight_messages; disturbances only lower it
		limit_silence => 30,      # seconds without progress while nothing is disturbed
		%args,
		active => [],
		done => {},          # name => times
		missed => {},
		over => [],          # disturbances that were
		undisturbed => [],   # [from, to]
		failures => [],      # of the chaos itself: texts
		largest_rss => 0,
	}, $class;

	$self->{dir} = File::Temp::tempdir('chaos-XXXXXX', DIR => $PostgreSQL::Test::Utils::log_path);
	srand($self->{seed});
	$self->{plan} = $self->_make_plan;
	srand();    # ports and file names are no part of it
	return $self;
}

# A pack of cards, in which each disturbance is as often as it weighs, dealt again
# and again.
sub _make_plan
{
	my ($self) = @_;
	my @cards = map { ($_) x $_->{weight} } grep { $_->{name} =~ $self->{only} } $self->disturbances;
	my (@plan, @pack);

	die "no disturbance is called $self->{only}\n" if !@cards;

	while (@plan < 5 * $self->{seconds} + 100)
	{
		if (!@pack)
		{
			@pack = @cards;
			for my $i (reverse 1 .. $#pack)
			{
				my $j = int(rand($i + 1));
				@pack[ $i, $j ] = @pack[ $j, $i ];
			}
		}
		my $what = pop @pack;
		my ($from, $to) = @{ $what->{lasts} // [ 0, 0 ] };
		push @plan, {
			what => $what,
			number => scalar @plan,
			lasts => $from + rand($to - $from),
			pause => rand($PAUSE),
			blind => rand() < $BLIND && !$what->{is_met},
			dice => [ rand(), rand(), rand() ],
		};
	}
	return \@plan;
}

#
# the run
#

sub _arrived
{
	my ($self) = @_;

	return sum0 map { $_->distinct } values %{ $self->{consumers} };
}

sub _wait_flowing
{
	my ($self) = @_;
	my $before = $self->_arrived;

	return eval {
		wait_until('messages to flow', sub { $self->_sample; $self->_arrived >= $before + $FLOWING },
			$self->{limit_silence});
	} // do { push @{ $self->{failures} }, $self->_status; 0 };
}

sub _status
{
	my ($self) = @_;

	return 'nothing arrives; outbox.status: '
	  . ($self->{node}->value('SELECT s FROM outbox.status s') // 'no answer');
}

# Has anything arrived?  And memory of the worker, a few times a second.
sub _sample
{
	my ($self) = @_;
	my $now = time();

	return if $now - ($self->{sampled_at} // 0) < 0.2;
	$self->{sampled_at} = $now;
	my $arrived = $self->_arrived;
	($self->{arrived}, $self->{arrived_at}) = ($arrived, $now)
	  if $arrived != ($self->{arrived} // -1);
	my $pid = $self->{sampled_pid} //= ($self->{node}->titled($self->{worker_title}))[0] // return;
	open my $in, '<', "/proc/$pid/status" or return delete $self->{sampled_pid};
	my ($rss) = join('', <$in>) =~ /^RssAnon:\s+(\d+)/m;
	close $in;
	return delete $self->{sampled_pid} if !$rss;
	$self->{largest_rss} = max($self->{largest_rss}, $rss);
	return;
}

# Run part of a disturbance in a process of its own.
sub _start_part
{
	my ($self, $event, $part) = @_;
	my $here = $event->{what}{"${part}_here"};
	my $code = $event->{what}{$part};

	$event->{part} = $part;
	$event->{missed} = 1 if $here && !$here->($self, $event) && $part eq 'do';
	return if !$code;
	$event->{process} = Outbox::Process->start_code(
		name => "$event->{what}{name}: $part",
		log => "$self->{dir}/disturbances.log",
		code => sub { $code->($self, $event) or POSIX::_exit($MISSED) });
	return;
}

sub _begin
{
	my ($self, $event) = @_;

	$event->{begun} = time();
	push @{ $self->{active} }, $event;
	if ($event->{what}{calm})
	{
		$event->{before} = $self->_arrived;
		return;
	}
	$self->_note_undisturbed(time());
	$self->_start_part($event, 'do');
	return;
}

sub _record
{
	my ($self, $event) = @_;
	my $name = $event->{what}{name};

	$event->{over} = time();
	push @{ $self->{over} }, $event;
	$self->{ $event->{missed} ? 'missed' : 'done' }{$name}++;
	$self->{log}->(sprintf '%7.2f to %7.2f  %s%s', $event->{begun} - $self->{began},
		$event->{over} - $self->{began}, $name, $event->{missed} ? ' (in vain)' : '');
	return;
}

# Is it too early to undo a disturbance?
sub _lasts
{
	my ($self, $event) = @_;
	my $now = time();

	$event->{until} //= $now + $event->{lasts};
	$event->{before} //= $self->{arrived};
	return 1 if $now < $event->{until};
	return 0 if !$event->{what}{is_met} || $now > $event->{until} + $LIMIT_MEET;
	return $self->{arrived} < $event->{before} + 2 * $FLOWING;
}

# Take a disturbance as far as it goes; true once it is over.
sub _advance
{
	my ($self, $event, $hurry) = @_;

	return $self->_advance_calm($event, $hurry) if $event->{what}{calm};
	if (my $process = $event->{process})
	{
		return 0 if $process->running;
		my $status = $process->{status} >> 8;
		delete $event->{process};
		$self->{node}->learn_pid;
		$event->{missed} = 1 if $status != 0 && $event->{part} eq 'do';
		push @{ $self->{failures} }, "could not undo: $event->{what}{name}"
		  if $status != 0 && $status != $MISSED && $event->{part} eq 'undo';
	}
	if ($event->{part} eq 'do')
	{
		return 0 if $self->_lasts($event) && !$event->{missed} && !$hurry;
		$self->_start_part($event, 'undo');
		return 0;
	}
	$self->_record($event);
	return 1;
}

sub _advance_calm
{
	my ($self, $event, $hurry) = @_;
	my $lasted = time() - $event->{begun};
	my $flows = $self->_arrived >= $event->{before} + $FLOWING;

	return 0 if $lasted < $event->{lasts} && !$hurry;
	if (!$flows && $lasted > $self->{limit_silence})
	{
		push @{ $self->{failures} }, $self->_status;
		$flows = 1;
	}
	return 0 if !$flows && !$hurry;
	$self->_record($event);
	return 1;
}

sub _fits
{
	my ($self, $event) = @_;
	my @active = map { $_->{what} } @{ $self->{active} };
	my $what = $event->{what};
	my %used = map { $_ => 1 } map { $_->{name}, @{ $_->{uses} // [] } } @active;
	my %needed = map { $_ => 1 } map { @{ $_->{needs} // [] } } @active;

	return !@active if $what->{calm};
	return
		 @active < $AT_ONCE
	  && !grep({ $used{$_} } $what->{name}, @{ $what->{uses} // [] }, @{ $what->{needs} // [] })
	  && !grep({ $needed{$_} } @{ $what->{uses} // [] })
	  && !grep({ $_->{calm} } @active);
}

# Most of them shall meet a system at work.
sub _flows
{
	my ($self) = @_;
	my $silent = time() - $self->{arrived_at};

	return 1 if $silent < 1;
	return 0 if @{ $self->{active} } || time() - $self->{calm_since} < $self->{limit_silence}
	  || $silent < $self->{limit_silence};
	push @{ $self->{failures} }, $self->_status;
	return $self->{arrived_at} = time();
}

sub _note_undisturbed
{
	my ($self, $now) = @_;
	my $since = delete $self->{calm_since} // return;

	push @{ $self->{undisturbed} }, [ $since, $now ];
	return;
}

sub disturb
{
	my ($self) = @_;
	my $next = 0;
	my $end = time() + $self->{seconds};

	$self->{began} = $self->{calm_since} = time();
	while (time() < $end || @{ $self->{active} })
	{
		my $over = time() >= $end;

		$self->_sample;
		$self->{active} = [ grep { !$self->_advance($_, $over) } @{ $self->{active} } ];
		shift @{ $self->{plan} }
		  if !$over && time() + ($self->{plan}[0]{what}{long} // 0) > $end;
		$self->{calm_since} //= time()
		  if !grep { !$_->{what}{calm} } @{ $self->{active} };
		if (  !$over
			&& time() >= $next
			&& $self->_fits($self->{plan}[0])
			&& ($self->{plan}[0]{blind} || $self->_flows))
		{
			my $event = shift @{ $self->{plan} };
			$self->_begin($event);
			$next = time() + $event->{pause};
		}
		usleep(20_000);
	}
	$self->{disturbed_for} = time() - $self->{began};
	return;
}

# No more faults: messages flow, then the writers stop, and all that is left is
# delivered.
sub drain
{
	my ($self) = @_;
	my $start = time();

	$self->{log}->('no more disturbances');
	$self->_wait_flowing;
	$self->{load}->stop;
	$self->_start_late_consumers;
	my $drained = eval { $self->{node}->wait_drained(timeout => $LIMIT_DRAIN) };
	push @{ $self->{failures} }, "does not drain: $@" if !$drained;
	$self->{committed} = [ $self->_committed ];
	my $wanted = @{ $self->{committed} };
	# what does not come is named by the comparison
	eval { wait_until('all', sub { $self->_sample; $self->_arrived >= $wanted }, 20) };
	$self->{consumers}{orders}->wait_quiet(0.5);
	$self->{drained_for} = time() - $start;
	# or until the last message, after which there is nothing to come
	$self->_note_undisturbed($drained ? undef : time());
	return;
}

sub _start_late_consumers
{
	my ($self) = @_;

	for my $queue (split /\n/, $self->{node}->value(
			q{SELECT DISTINCT routing_key FROM orders WHERE routing_key LIKE 'late.%'}))
	{
		$self->{consumers}{$queue} = $self->{broker}->start_consumer($queue);
	}
	return;
}

sub run
{
	my ($self) = @_;

	$self->start;
	$self->disturb;
	$self->drain;
	$self->_keep_evidence;
	$self->judge;
	return $self;
}

1;
