package Outbox::Consumer;

# A consumer of a queue that writes down what arrives (amqptool consume), and
# what it wrote.

use strict;
use warnings FATAL => 'all';

use Time::HiRes;

use Outbox::Process;
use Outbox::Wait qw(wait_until);

# broker, queue, file; options: the arguments for amqptool; uri: that of the broker
sub new
{
	my ($class, %args) = @_;
	my $broker = $args{broker};
	my $self = bless {
		queue => $args{queue},
		file => $args{file},
		offset => 0,
		messages => [],
		seen => {}
	}, $class;

	open my $touch, '>>', $self->{file} or die "$self->{file}: $!";
	close $touch;
	$self->{process} = Outbox::Process->start(
		name => "consumer of $args{queue}",
		log => "$args{file}.log",
		command => [
			$broker->tool('amqptool'), '--uri', $args{uri} // $broker->uri,
			'consume', $args{queue}, $args{file}, @{ $args{options} // [] }
		]);
	return $self;
}

# Every message so far, in the order of arrival: hashes with at (microseconds),
# message_id, id (x-outbox-id), redelivered, routing_key, body.
sub received
{
	my ($self) = @_;

	open my $in, '<', $self->{file} or die "$self->{file}: $!";
	seek $in, $self->{offset}, 0;
	while (my $line = <$in>)
	{
		last unless $line =~ /\n\z/;    # still being written
		$self->{offset} += length $line;
		chomp $line;
		my %message;
		@message{qw(at message_id id redelivered routing_key body)} =
		  split /\t/, $line, 6;
		push @{ $self->{messages} }, \%message;
		$self->{seen}{ $message{message_id} } //= \%message;
	}
	close $in;
	return @{ $self->{messages} };
}

# Number of different messages so far.
sub distinct
{
	my ($self) = @_;

	$self->received;
	return scalar keys %{ $self->{seen} };
}

# The first arrival of a message, or undef.
sub first
{
	my ($self, $message_id) = @_;

	$self->received;
	return $self->{seen}{$message_id};
}

sub wait_distinct
{
	my ($self, $count, $timeout) = @_;

	return wait_until("$count messages in queue $self->{queue}",
		sub { $self->distinct >= $count }, $timeout);
}

sub wait_message
{
	my ($self, $message_id, $timeout, $poll_ms) = @_;

	return wait_until("message $message_id to arrive",
		sub { $self->first($message_id) },
		$timeout, $poll_ms);
}

# Nothing new for that long: for showing that a queue has run dry.
sub wait_quiet
{
	my ($self, $seconds, $timeout) = @_;
	my $count = -1;
	my $since = Time::HiRes::time();

	return wait_until(
		"queue $self->{queue} to be quiet for ${seconds}s",
		sub {
			my $now = scalar(my @all = $self->received);
			($count, $since) = ($now, Time::HiRes::time()) if $now != $count;
			return Time::HiRes::time() - $since >= $seconds;
		},
		$timeout);
}

sub stop
{
	my ($self) = @_;

	$self->{process}->stop;
	return;
}

1;
