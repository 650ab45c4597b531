package Outbox::Chaos::Verdict;

# What came of it: what is lost, invented, reordered, repeated, or stuck.  Part of
# Outbox::Chaos.

use strict;
use warnings FATAL => 'all';

use File::Copy ();
use List::Util qw(max min sum0);

use Outbox::Sets qw(compare_sets busiest_stretch);

my $UNRECORDED = 5;    # seconds for which a key with a backlog may hold up the record
# AddressSanitizer keeps what is freed
my $LIMIT_RSS_KB = ($ENV{OUTBOX_SANITIZE} ? 512 : 32) * 1024;

# For whoever has to find out what happened: what RabbitMQ said, what arrived, and
# what should have.
sub _keep_evidence
{
	my ($self) = @_;

	File::Copy::copy($_, $self->{dir})
	  for glob("$self->{broker}{dir}/log/*.log"), map { $_->{file} } values %{ $self->{consumers} };
	open my $out, '>', "$self->{dir}/committed" or die "$self->{dir}/committed: $!";
	print $out "$_\n" for _lines(@{ $self->{committed} });
	close $out;
	return;
}

# Connections of the worker, and channels that RabbitMQ closed on it.
sub _broker_log_counts
{
	my ($self) = @_;
	my ($connections, $channels) = (0, 0);

	for my $file (glob "$self->{broker}{dir}/log/*.log")
	{
		open my $in, '<', $file or next;
		while (my $line = <$in>)
		{
			$connections++ if $line =~ m{outbox/postgres.*authenticated and granted access};
			$channels++ if $line =~ /Channel error on connection/;
		}
		close $in;
	}
	return ($connections, $channels);
}

# What the server's log must not say.
sub _server_log_findings
{
	my ($self) = @_;
	my @findings;

	open my $in, '<', $self->{node}->logfile or return 'no log';
	while (my $line = <$in>)
	{
		chomp $line;
		push @findings, $line
		  if $line =~ /PANIC:|TRAP:|terminated by signal (?!9\b|15\b|3\b)|stuck spinlock/
		  || $line =~ /outbox.*(?:broke the protocol|confirmed a message|returned a message that)/
		  || $line =~ /is not settled|batch is full|could be set aside/;
	}
	close $in;
	return @findings;
}

# The longest time without an arrival while nothing was disturbed.  The last stretch
# ends with the last message.
sub _longest_silence
{
	my ($self, @received) = @_;
	my @at = sort { $a <=> $b } map { $_->{at} / 1e6 } @received;
	my $longest = 0;

	for my $stretch (@{ $self->{undisturbed} })
	{
		my ($from, $to) = ($stretch->[0], $stretch->[1] // $at[-1] // $stretch->[0]);
		my $last = $from;
		for my $at (grep { $_ > $from && $_ < $to } @at)
		{
			$longest = max($longest, $at - $last);
			$last = $at;
		}
		$longest = max($longest, $to - $last);
	}
	return $longest;
}

# The busiest stretch, of so many seconds, around an end of the worker.
sub _unrecorded
{
	my ($event, $locked, @at) = @_;
	my ($from, $to) = ($event->{begun} - 10, $event->{over} + 5);
	my $length = $UNRECORDED + sum0 map { $_->{over} - $_->{begun} }
	  grep { $_->{over} > $from && $_->{begun} < $event->{over} } @$locked;

	return busiest_stretch($length, grep { $_ > $from && $_ < $to } @at);
}

# Copies that are owed to the end of a channel, a connection, or the worker: what
# was in flight; and to the last, what was settled and not recorded.  While our
# tables are locked nothing is recorded.
sub _allowed_duplicates
{
	my ($self, $found, @received) = @_;
	my @at = map { $_->{at} / 1e6 } @received;
	my @ends = grep { $_->{what}{ends_worker} } @{ $self->{over} };
	my @locked = grep { $_->{what}{locks} } @{ $self->{over} };

	@{$found}{qw(connections channels)} = $self->_broker_log_counts;
	$found->{ends} = @ends;
	$found->{unrecorded} = sum0 map { _unrecorded($_, \@locked, @at) } @ends;
	return $found->{unrecorded}
	  + $self->{in_flight} * (max(0, $found->{connections} - 1) + $found->{channels});
}

sub judge
{
	my ($self) = @_;
	my @received = sort { $a->{at} <=> $b->{at} } map { $_->received } values %{ $self->{consumers} };
	my %due = map { $_->{id} => $_->{due_at} } grep { $_->{due_at} } @{ $self->{committed} };
	my %found = (compare_sets($self->{committed}, \@received),
		committed => $self->{committed},
		received => \@received);

	$found{early} = [ grep { $due{ $_->{message_id} } && $_->{at} < $due{ $_->{message_id} } } @received ];
	$found{allowed} = $self->_allowed_duplicates(\%found, @received);
	$found{silence} = $self->_longest_silence(@received);
	$found{dead} = $self->{node}->status('dead');
	$found{left} = $self->{node}->value(<<'END');
SELECT concat_ws(', ', nullif(pending, 0) || ' pending', nullif(deferred, 0) || ' deferred',
	nullif(in_flight, 0) || ' in flight', nullif(held, 0) || ' held') FROM outbox.status
END
	$found{log} = [ $self->_server_log_findings ];
	$self->{found} = \%found;
	return;
}

# What is claimed, as [true or false, name, list of what contradicts it].
sub checks
{
	my ($self) = @_;
	my $found = $self->{found};
	my $copies = @{ $found->{duplicates} };

	return (
		[ @{ $found->{committed} } > 0, 'something was committed', [] ],
		(map { my ($key, $name) = @$_; [ !@{ $found->{$key} }, $name, $found->{$key} ] }
			[ lost => 'nothing lost' ],
			[ invented => 'nothing arrived that did not commit' ],
			[ disorder => "each customer's messages in order" ],
			[ early => 'nothing arrived before its time' ],
			[ log => 'the server log shows no failure of our own' ]),
		[ $copies <= $found->{allowed}, "duplicates within bounds ($copies of at most $found->{allowed})",
			$found->{duplicates} ],
		[ $found->{dead} == 0, 'no dead letters', [] ],
		[ $found->{left} eq '', 'nothing is left to be published', [ $found->{left} ] ],
		[ $self->{largest_rss} > 0 && $self->{largest_rss} < $LIMIT_RSS_KB,
			sprintf('the worker needs less than %d MB', $LIMIT_RSS_KB / 1024),
			["RssAnon $self->{largest_rss} kB"] ],
		[ $found->{silence} < $self->{limit_silence},
			"no more than $self->{limit_silence} s without progress while nothing is disturbed",
			["$found->{silence} s"] ],
		[ !@{ $self->{failures} }, 'every disturbance was undone, and then messages flowed',
			$self->{failures} ],
	);
}

# The first of a list, for people.
sub examples
{
	my (@list) = @_;

	return _lines(@list[ 0 .. min(4, $#list) ]);
}

sub _lines
{
	return map {
		my $item = $_;
		ref $item ? join ' ', map { "$_=" . ($item->{$_} // '') } sort keys %$item : $item;
	} @_;
}

# Both tables, as lines.
sub table
{
	my ($self) = @_;
	my $found = $self->{found};
	my @lines = (sprintf('%-44s %5s %7s', 'what was done', 'times', 'in vain'));

	for my $what ($self->disturbances)
	{
		push @lines, sprintf '  %-42s %5d %7s', $what->{name}, $self->{done}{ $what->{name} } // 0,
		  $self->{missed}{ $what->{name} } || '';
	}
	push @lines, '', sprintf('what came of it (seed %d, %.0f s of disturbances, %.0f s to drain)',
		$self->{seed}, $self->{disturbed_for}, $self->{drained_for});
	for my $row (
		[ 'messages committed', scalar @{ $found->{committed} } ],
		[ 'messages received', scalar @{ $found->{received} } ],
		[ 'lost', scalar @{ $found->{lost} } ],
		[ 'invented', scalar @{ $found->{invented} } ],
		[ 'reordered within a key', scalar @{ $found->{disorder} } ],
		[ 'before their time', scalar @{ $found->{early} } ],
		[ 'duplicates', scalar @{ $found->{duplicates} } ],
		[ '  allowed', $found->{allowed} ],
		[ '  for: connections', $found->{connections} ],
		[ '  channels closed on a message', $found->{channels} ],
		[ '  not recorded at an end of the worker', $found->{unrecorded} ],
		[ 'delivered again by RabbitMQ', scalar @{ $found->{redelivered} } ],
		[ 'dead letters', $found->{dead} ],
		[ 'left over', $found->{left} || 'nothing' ],
		[ 'largest RssAnon of the worker', "$self->{largest_rss} kB" ],
		[ 'longest silence while undisturbed', sprintf '%.1f s', $found->{silence} ])
	{
		push @lines, sprintf '  %-42s %12s', @$row;
	}
	return @lines;
}

1;
