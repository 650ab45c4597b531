package Outbox::FakeBroker;

# A peer that speaks AMQP 0-9-1 and does what a test tells it: for the failures that
# a real RabbitMQ cannot be asked for.  Each frame it sends is well formed; what is
# amiss is only which frame, and when.
#
# It runs in a process of its own, serves any number of connections at once, and
# takes new orders while they last:
#
#	my $fake = Outbox::FakeBroker->new;      # honest: confirms all it is sent
#	$fake->behave(stall => 'tune');          # from now on, also for connections there are
#	$fake->behave;                           # honest again
#
# A connection goes through the steps start, tune, open, channel, confirm, ready: each
# but the last is named after the frame with which the broker takes it.  Orders:
#
#	stall => STEP         goes no further; at ready: says nothing at all
#	close => STEP         closes the socket in place of the step; at ready: right after it
#	reset => STEP         the same with a TCP reset
#	refuse => [STEP, CODE, TEXT]    the same with connection.close
#	down => 1             does not listen, and closes what is there
#	deaf => NUMBER        reads nothing from this connection once ready; 'all': from none
#	heartbeats => 0       sends none
#	beat => 1             sends one now
#	blocked => TEXT       connection.blocked
#	ack_all => NUMBER     an ack for all that it was ever sent on this connection, now
#	answer => ANSWER      to each message
#	by_key => {ROUTING_KEY => ANSWER}, by_exchange => {EXCHANGE => ANSWER}
#
# where ANSWER is 'ack', 'nack', 'return', 'none', 'later' and 'later nack' (when the next
# orders come), 'return later' (the return now, its ack then), 'slow' (ack after half a
# second), or [CODE, TEXT]: close the channel.

use strict;
use warnings FATAL => 'all';

use Carp;
use File::Temp;
use IO::Handle;
use IO::Select;
use JSON::PP qw(decode_json encode_json);
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM);

use Outbox::Broker;
use Outbox::FakeBroker::Peer;
use Outbox::Process;

use constant ANSWER_LIMIT => 20;    # s

# Outbox::FakeBroker->new(ORDERS...)
sub new
{
	my ($class, %orders) = @_;
	my $dir = File::Temp::tempdir('outbox-fake-XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $self = bless {
		port => Outbox::Broker::free_port(),
		journal => "$dir/journal",
		offset => 0,
		connections => 0,
		received => [],
		goodbyes => [],
	}, $class;

	socketpair($self->{control}, my $child, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or croak "socketpair: $!";
	$self->{control}->autoflush(1);
	open my $journal, '>>', $self->{journal} or croak "$self->{journal}: $!";
	$journal->autoflush(1);
	$self->{process} = Outbox::Process->start_code(
		name => 'fake broker',
		code => sub {
			close $self->{control};
			Outbox::FakeBroker::Peer::serve($self->{port}, $child, $journal);
		});
	$self->behave(%orders);
	return $self;
}

sub port { return $_[0]{port}; }
sub uri { return "amqp://guest\@127.0.0.1:$_[0]{port}/"; }
sub stop { $_[0]{process}->kill9; return; }

# Forget all earlier orders and follow these; returns when that is so.
sub behave
{
	my ($self, %orders) = @_;

	print { $self->{control} } encode_json(\%orders), "\n";
	IO::Select->new($self->{control})->can_read(ANSWER_LIMIT)
	  && defined readline($self->{control})
	  or croak 'the fake broker does not answer';
	return;
}

sub _read_journal
{
	my ($self) = @_;

	open my $in, '<:raw', $self->{journal} or croak "$self->{journal}: $!";
	seek $in, $self->{offset}, 0;
	while (my $line = <$in>)
	{
		last unless $line =~ /\n\z/;    # still being written
		$self->{offset} += length $line;
		my $entry = decode_json($line);
		if (ref $entry eq 'HASH') { push @{ $self->{goodbyes} }, $entry->{goodbye}; }
		elsif (ref $entry) { push @{ $self->{received} }, $entry; }
		else { $self->{connections} = $entry; }
	}
	close $in;
	return;
}

# How many connections it has accepted so far.
sub connections
{
	my ($self) = @_;

	$self->_read_journal;
	return $self->{connections};
}

# Every message so far: [exchange, routing key, message_id, x-outbox-id, number of
# the connection, answer].
sub received
{
	my ($self) = @_;

	$self->_read_journal;
	return @{ $self->{received} };
}

# How each connection ended on which the other side said goodbye: 'closed', 'reset', or
# 'open' if that waited for an answer.
sub goodbyes
{
	my ($self) = @_;

	$self->_read_journal;
	return @{ $self->{goodbyes} };
}

# message_id => how often it was confirmed
sub confirmed
{
	my ($self) = @_;
	my %confirmed;

	$confirmed{ $_->[2] }++ for grep { $_->[5] eq 'ack' } $self->received;
	return \%confirmed;
}

1;
