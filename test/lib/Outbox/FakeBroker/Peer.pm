package Outbox::FakeBroker::Peer;

# The process behind Outbox::FakeBroker, where the orders are described: one loop that
# serves all connections.

use strict;
use warnings FATAL => 'all';

use Errno qw(EAGAIN ECONNRESET EINTR EWOULDBLOCK);
use IO::Select;
use IO::Socket::INET;
use JSON::PP qw(decode_json);
use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);

use constant {
	METHOD => 1,
	HEADER => 2,
	BODY => 3,
	HEARTBEAT => 8,
	TICK => 0.05,    # s
	SLOW => 0.5,
};

#
# sockets
#

# Serve until the other end of `control` is closed.  What is received, and how many
# connections there were, is written to `journal` line by line, in JSON.
sub serve
{
	my ($port, $control, $journal) = @_;
	my $fake = {
		port => $port,
		control => $control,
		journal => $journal,
		orders => { down => 1 },
		by_socket => {},
	};

	local $SIG{PIPE} = 'IGNORE';
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
		_answer_slow($fake, $_) for grep { $_->{slow} } values %{ $fake->{by_socket} };
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
		elsif ($connection->{step} eq 'ready')
		{
			_confirm($fake, $connection, @$_) for splice @{ $connection->{later} };
			_confirm($fake, $connection, 0, 0, 1)
			  if ($orders->{ack_all} // 0) == $connection->{number};
			_send($fake, $connection, HEARTBEAT, 0, '') if $orders->{beat};
			_become_ready($fake, $connection);
		}
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
# the protocol
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
	  if ($fake->{orders}{heartbeats} // 1) &&
	  time() - $connection->{sent_at} >= $connection->{heartbeat} / 2;
	return;
}

sub _answer_slow
{
	my ($fake, $connection) = @_;
	my $slow = $connection->{slow};

	_confirm($fake, $connection, shift(@$slow)->[0]) while @$slow && $slow->[0][1] <= time();
	return;
}

sub _deaf
{
	my ($fake, $connection) = @_;

	return $connection->{step} eq 'ready' &&
	  ($fake->{orders}{deaf} // '') =~ /^(?:all|$connection->{number})$/;
}

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
		$connection->{later} = [];
		$connection->{slow} = [];
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
		elsif ($name eq '10.50')
		{
			_note($fake, { goodbye => _end_of($connection) });
			_method($fake, $connection, 0, 10, 51);
		}
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

# How a connection ends after connection.close of the other side, which does not wait for
# an answer: 'reset' if something of ours was still unread there.
sub _end_of
{
	my ($connection) = @_;

	IO::Select->new($connection->{socket})->can_read(1) or return 'open';
	my $got = sysread $connection->{socket}, my $rest, 1;
	return 'closed' if defined $got && $got == 0;
	return !defined $got && $! == ECONNRESET ? 'reset' : 'open';
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
	if ($answer =~ /^return/)
	{
		_method($fake, $connection, 1, 60, 50,
			pack('n', 312) . _short('NO_ROUTE') . _short($exchange) . _short($key));
		_send($fake, $connection, HEADER, 1, $message->{header});
		_send($fake, $connection, BODY, 1, $_) for @{ $message->{bodies} };
	}
	if ($answer =~ /later/)
	{
		push @{ $connection->{later} }, [ $connection->{tag}, $answer eq 'later nack' ];
	}
	elsif ($answer eq 'slow') { push @{ $connection->{slow} }, [ $connection->{tag}, time() + SLOW ]; }
	elsif ($answer ne 'none') { _confirm($fake, $connection, $connection->{tag}, $answer eq 'nack'); }
	return;
}

sub _confirm
{
	my ($fake, $connection, $tag, $nack, $multiple) = @_;

	_method($fake, $connection, 1, 60, $nack ? 120 : 80, pack('Q>C', $tag, $multiple // 0));
	return;
}

1;
