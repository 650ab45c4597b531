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
#	deaf => 1             reads nothing once ready
#	heartbeats => 0       sends none
#	blocked => TEXT       connection.blocked
#	answer => ANSWER      to each message
#	by_key => {ROUTING_KEY => ANSWER}, by_exchange => {EXCHANGE => ANSWER}
#
# where ANSWER is 'ack', 'nack', 'return', 'none', or [CODE, TEXT]: close the channel.

use strict;
use warnings FATAL => 'all';

use Carp;
use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use File::Temp;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use JSON::PP qw(decode_json encode_json);
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);

use Outbox::Broker;
use Outbox::Process;

use constant {
	METHOD => 1,
	HEADER => 2,
	BODY => 3,
	HEARTBEAT => 8,
	ANSWER_LIMIT => 20,    # s
	TICK => 0.05,          # s
};

#
# in the test
#

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
			_serve({ port => $self->{port}, control => $child, journal => $journal });
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
		if (ref $entry) { push @{ $self->{received} }, $entry; }
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

# message_id => how often it was confirmed
sub confirmed
{
	my ($self) = @_;
	my %confirmed;

	$confirmed{ $_->[2] }++ for grep { $_->[5] eq 'ack' } $self->received;
	return \%confirmed;
}

#
# in the child: sockets
#

sub _serve
{
	my ($fake) = @_;

	local $SIG{PIPE} = 'IGNORE';
	$fake->{orders} = { down => 1 };
	$fake->{by_socket} = {};
	while (1)
	{
		my @connections = values %{ $fake->{by_socket} };
		my $reading = IO::Select->new($fake->{control}, $fake->{listener} // (),
			map { $_->{socket} } grep { !_deaf($fake, $_) } @connections);
		my $writing = IO::Select->new(map { $_->{socket} } grep { $_->{out} ne '' } @connections);
		my ($readable, $writable) = IO::Select->select($reading, $writing, undef,
			@connections ? TICK : undef);

		for my $socket (@{ $writable // [] }, @{ $readable // [] })
		{
			my $connection = $fake->{by_socket}{$socket};

			if ($connection) { _move($fake, $connection); }
			elsif ($socket == $fake->{control}) { _take_orders($fake) or return; }
			elsif ($fake->{listener} && $socket == $fake->{listener}) { _accept($fake); }
		}
		_beat($fake, $_) for grep { $_->{heartbeat} } values %{ $fake->{by_socket} };
	}
	return;
}

sub _take_orders
{
	my ($fake) = @_;
	my $line = readline($fake->{control}) // return 0;    # the test is gone
	my $orders = $fake->{orders} = decode_json($line);

	if ($orders->{down}) { delete $fake->{listener}; }
	else
	{
		$fake->{listener} //= IO::Socket::INET->new(
			Listen => 50,
			LocalAddr => '127.0.0.1',
			LocalPort => $fake->{port},
			ReuseAddr => 1) or die "port $fake->{port}: $@";
	}
	for my $connection (values %{ $fake->{by_socket} })
	{
		if ($orders->{down}) { _drop($fake, $connection); }
		elsif ($connection->{step} eq 'ready') { _become_ready($fake, $connection); }
	}
	syswrite $fake->{control}, "done\n";
	return 1;
}

sub _accept
{
	my ($fake) = @_;
	my $socket = $fake->{listener}->accept or return;

	$socket->blocking(0);
	$fake->{by_socket}{$socket} = {
		socket => $socket,
		number => ++$fake->{connections},
		step => 'accepted',
		in => '',
		out => '',
		heartbeat => 0,
		blocked => 0,
		sent_at => time(),
	};
	_note($fake, $fake->{connections});
	return;
}

sub _note
{
	my ($fake, $entry) = @_;

	print { $fake->{journal} } JSON::PP->new->ascii->allow_nonref->encode($entry), "\n";
	return;
}

sub _drop
{
	my ($fake, $connection, $reset) = @_;

	setsockopt($connection->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) if $reset;
	delete $fake->{by_socket}{ $connection->{socket} };
	$connection->{gone} = 1;
	close $connection->{socket};
	return;
}

# Bytes in and out; each is tried whatever select() said of it.
sub _move
{
	my ($fake, $connection) = @_;

	return if $connection->{gone};
	if ($connection->{out} ne '')
	{
		my $sent = syswrite $connection->{socket}, $connection->{out};
		substr($connection->{out}, 0, $sent, '') if $sent;
	}
	return if _deaf($fake, $connection);
	my $got = sysread $connection->{socket}, $connection->{in}, 65536, length $connection->{in};
	return if !defined $got && ($! == EAGAIN || $! == EWOULDBLOCK || $! == EINTR);
	return _drop($fake, $connection) unless $got;

	if ($connection->{step} eq 'accepted' && $connection->{in} =~ s/^AMQP\x00\x00\x09\x01//s)
	{
		_reach($fake, $connection, 'start');
	}
	while (!$connection->{gone} && $connection->{step} ne 'accepted' && length $connection->{in} >= 7)
	{
		my ($type, $channel, $size) = unpack 'CnN', $connection->{in};
		last if length $connection->{in} < $size + 8;
		my $frame = substr $connection->{in}, 0, $size + 8, '';
		_frame($fake, $connection, $type, substr($frame, 7, $size));
	}
	return;
}

#
# in the child: the protocol
#

sub _short { return pack 'C/a*', $_[0]; }

sub _send
{
	my ($fake, $connection, $type, $channel, $payload) = @_;

	return if $connection->{gone} || $connection->{step} eq 'ready' && _stalls($fake, 'ready');
	$connection->{out} .= pack('CnN', $type, $channel, length $payload) . $payload . "\xCE";
	$connection->{sent_at} = time();
	my $sent = syswrite $connection->{socket}, $connection->{out};
	substr($connection->{out}, 0, $sent, '') if $sent;
	return;
}

sub _method
{
	my ($fake, $connection, $channel, $class, $method, $arguments) = @_;

	return _send($fake, $connection, METHOD, $channel,
		pack('nn', $class, $method) . ($arguments // ''));
}

sub _beat
{
	my ($fake, $connection) = @_;

	_send($fake, $connection, HEARTBEAT, 0, '')
	  if ($fake->{orders}{heartbeats} // 1) && time() - $connection->{sent_at} >= $connection->{heartbeat} / 2;
	return;
}

sub _deaf { return $_[0]{orders}{deaf} && $_[1]{step} eq 'ready'; }
sub _stalls { return ($_[0]{orders}{stall} // '') eq $_[1]; }

# Do what was ordered for a step; false if that is to take it.
sub _spoil
{
	my ($fake, $connection, $step) = @_;
	my $orders = $fake->{orders};
	my ($refused, $code, $text) = @{ $orders->{refuse} // [''] };

	return 1 if _stalls($fake, $step);
	for my $end (grep { ($orders->{$_} // '') eq $step } qw(close reset))
	{
		_drop($fake, $connection, $end eq 'reset');
		return 1;
	}
	return 0 if $refused ne $step;
	_method($fake, $connection, 0, 10, 50, pack('n', $code) . _short($text) . pack('nn', 0, 0));
	return 1;
}

sub _reach
{
	my ($fake, $connection, $step) = @_;
	my $send = sub { _method($fake, $connection, @_); };

	$connection->{step} = $step;
	return if _spoil($fake, $connection, $step);
	if ($step eq 'start')
	{
		$send->(0, 10, 10, pack 'CCNN/a*N/a*', 0, 9, 0, 'PLAIN', 'en_US');
	}
	elsif ($step eq 'tune') { $send->(0, 10, 30, pack 'nNn', 2047, 131072, 60); }
	elsif ($step eq 'open') { $send->(0, 10, 41, _short('')); }
	elsif ($step eq 'channel') { $send->(1, 20, 11, pack 'N', 0); }
	elsif ($step eq 'confirm')
	{
		$send->(1, 85, 11);
		$connection->{step} = 'ready';
		$connection->{tag} = 0;
		_become_ready($fake, $connection);
	}
	return;
}

# Also when orders change.
sub _become_ready
{
	my ($fake, $connection) = @_;
	my $blocked = $fake->{orders}{blocked};

	return if _spoil($fake, $connection, 'ready') || defined $blocked == $connection->{blocked};
	$connection->{blocked} = defined $blocked;
	_method($fake, $connection, 0, 10, defined $blocked ? 60 : 61,
		defined $blocked ? _short($blocked) : '');
	return;
}

sub _frame
{
	my ($fake, $connection, $type, $payload) = @_;
	my $message = $connection->{message};

	if ($type == METHOD)
	{
		my ($class, $method) = unpack 'nn', $payload;
		my $name = "$class.$method";

		if ($name eq '10.11') { _reach($fake, $connection, 'tune'); }
		elsif ($name eq '10.31') { $connection->{heartbeat} = unpack 'x4x6n', $payload; }
		elsif ($name eq '10.40') { _reach($fake, $connection, 'open'); }
		elsif ($name eq '10.50') { _method($fake, $connection, 0, 10, 51); }
		elsif ($name eq '10.51') { _drop($fake, $connection); }
		elsif ($name eq '20.10') { _reach($fake, $connection, 'channel'); }
		elsif ($name eq '85.10') { _reach($fake, $connection, 'confirm'); }
		elsif ($name eq '60.40')
		{
			@{ $connection->{message} = {} }{qw(exchange key)} = unpack 'x4x2C/aC/a', $payload;
		}
	}
	elsif ($type == HEADER && $message)
	{
		$message->{header} = $payload;
		$message->{left} = unpack 'x4Q>', $payload;
		$message->{bodies} = [];
	}
	elsif ($type == BODY && $message)
	{
		$message->{left} -= length $payload;
		push @{ $message->{bodies} }, $payload;
	}
	if ($connection->{message} && ($connection->{message}{left} // 1) == 0)
	{
		delete $connection->{message};
		_message($fake, $connection, $message) if $connection->{step} eq 'ready';
	}
	return;
}

# message_id and x-outbox-id of a content header
sub _identity
{
	my ($header) = @_;
	my ($flags, $rest) = unpack 'x12na*', $header;
	my @properties = qw(C/a C/a N/a C C C/a C/a C/a C/a);
	my @values;

	for my $i (0 .. $#properties)
	{
		if ($flags & 0x8000 >> $i) { ($values[$i], $rest) = unpack "$properties[$i]a*", $rest; }
	}
	my ($id) = ($values[2] // '') =~ /\x0bx-outbox-idl(.{8})/s;
	return ($values[8], defined $id ? unpack('q>', $id) : undef);
}

sub _message
{
	my ($fake, $connection, $message) = @_;
	my $orders = $fake->{orders};
	my ($exchange, $key) = @{$message}{qw(exchange key)};
	my $answer = $orders->{by_key}{$key} // $orders->{by_exchange}{$exchange} //
	  $orders->{answer} // 'ack';

	$answer = 'none' if _stalls($fake, 'ready');
	$connection->{tag}++;
	_note($fake, [
		$exchange, $key, _identity($message->{header}),
		$connection->{number}, ref $answer ? 'close' : $answer ]);
	if (ref $answer)
	{
		# what comes now until the channel is open again is not looked at
		$connection->{step} = 'closing';
		_method($fake, $connection, 1, 20, 40,
			pack('n', $answer->[0]) . _short($answer->[1]) . pack('nn', 60, 40));
		return;
	}
	if ($answer eq 'return')
	{
		_method($fake, $connection, 1, 60, 50,
			pack('n', 312) . _short('NO_ROUTE') . _short($exchange) . _short($key));
		_send($fake, $connection, HEADER, 1, $message->{header});
		_send($fake, $connection, BODY, 1, $_) for @{ $message->{bodies} };
	}
	return if $answer eq 'none';
	_method($fake, $connection, 1, 60, $answer eq 'nack' ? 120 : 80,
		pack('Q>C', $connection->{tag}, 0));
	return;
}

1;
