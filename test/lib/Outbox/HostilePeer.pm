package Outbox::HostilePeer;

# A broker that means no good: a process that accepts one connection after another,
# begins each like RabbitMQ, and at some point sends what no broker sends, or
# nothing more, or leaves.  What it does is decided by a seed.

use strict;
use warnings FATAL => 'all';

use Carp;
use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);

use Outbox::Process;

# The answers of the handshake, in order: start, tune, open-ok, channel.open-ok,
# confirm.select-ok.
my @ANSWERS = (
	_method(0, 10, 10, pack('CC N N/a* N/a*', 0, 9, 0, 'PLAIN', 'en_US')),
	_method(0, 10, 30, pack('nNn', 2047, 131072, 1)),
	_method(0, 10, 41, pack('C/a*', '')),
	_method(1, 20, 11, pack('N/a*', '')),
	_method(1, 85, 11, ''));

# What asks for them: class and method.
my @QUESTIONS = ('header', '10 11', '10 40', '20 10', '85 10');

sub _frame
{
	my ($type, $channel, $payload) = @_;

	return pack('Cn N/a* C', $type, $channel, $payload, 0xCE);
}

sub _method
{
	my ($channel, $class, $method, $arguments) = @_;

	return _frame(1, $channel, pack('nn', $class, $method) . $arguments);
}

sub _ack { return _method(1, 60, 80, pack('Q>C', @_)); }
sub _noise { return join '', map { chr int rand 256 } 1 .. $_[0]; }

sub _return
{
	my ($headers) = @_;

	return _method(1, 60, 50, pack('n C/a* C/a* C/a*', 312, 'NO_ROUTE', '', 'x'))
	  . _frame(2, 1, pack('nn Q> n N/a*', 60, 0, 4, 0x2000, $headers))
	  . _frame(3, 1, 'body');
}

# Tables in each other: 7 bytes each.
sub _nested
{
	my ($depth) = @_;

	return join '', map { pack('C/a* a N', 't', 'F', 7 * ($depth - $_)) } 1 .. $depth;
}

# One of the frames that do no harm by themselves, with some of its bytes changed.
sub _mutated
{
	my @frames = (
		@ANSWERS,
		_return(_nested(3)),
		_method(0, 10, 50, pack('n C/a* nn', 320, 'CONNECTION_FORCED', 0, 0)),
		_method(0, 10, 60, pack('C/a*', 'low on memory')),
		_method(1, 20, 20, "\0"));
	my $frame = $frames[ rand @frames ];

	substr($frame, int(rand(length $frame)), 1, _noise(1 + rand 2)) for 0 .. rand 3;
	return $frame;
}

# What it may do: each returns bytes to send, undef to say nothing more.
my %ACTS = (
	'garbage' => sub { _noise(1 + rand 2000) },
	'mutated frames' => sub { join '', map { _mutated() } 0 .. rand 8 },
	'truncated frame' => sub { my $f = _mutated(); substr($f, 0, int(rand(length $f))) },
	'oversized frame' => sub { pack('CnN', 1 + int rand 3, 1, 0xFFFFFFFF - int rand 1e9) . _noise(500) },
	'frame too large by one' => sub { _frame(3, 1, 'x' x 131065) },
	'no end mark' => sub { substr($ANSWERS[ rand @ANSWERS ], 0, -1) . 'x' },
	'wrong channel' => sub { _frame(1, 2 + int rand 65000, pack('nnQ>C', 60, 80, 1, 0)) },
	'ack for a tag never sent' => sub { _ack(1_000_000_000 + int rand 1e9, int rand 2) },
	'ack for tag 0' => sub { _ack(0, 0) },
	'ack twice' => undef,    # see _strike
	'return never asked for' => sub { _return('') },
	'return of an odd id' => sub { _return(pack('C/a* a q>', 'x-outbox-id', 'l', -1 - int rand 1e9)) },
	'nested tables' => sub { _return(_nested(15_000)) },
	'absurd length' => sub { _method(0, 10, 10, pack('CCN', 0, 9, 0xFFFFFFF0) . _noise(50)) },
	'absurd length in headers' => sub {
		_method(1, 60, 50, pack('n C/a* C/a* C/a*', 312, 'NO_ROUTE', '', 'x'))
		  . _frame(2, 1, pack('nn Q> n N', 60, 0, 4, 0x2000, 0x7FFFFFFF) . _noise(50));
	},
	'handshake out of turn' => sub { $ANSWERS[ rand @ANSWERS ] x 2 },
	'connection.close' => sub { _method(0, 10, 50, pack('n C/a* nn', 200 + rand 400, _noise(50), 60, 40)) },
	'channel.close' => sub { _method(1, 20, 40, pack('n C/a* nn', 404, _noise(255), 60, 40)) },
	'blocked and unblocked' => sub {
		join '', map { _method(0, 10, 60 + int rand 2, '') } 0 .. 20;
	},
	'flood' => sub { _method(1, 20, 20, "\0") x 20_000 },
	'silence' => sub { undef },
	'end of file' => undef,
	'reset' => undef);
my @NAMES = sort keys %ACTS;

# Outbox::HostilePeer->start(port => ..., seed => ..., log => file)
#
# One line in the log for each connection: what was done, and in braces the body of
# a message that it has taken.
sub start
{
	my ($class, %args) = @_;
	my $listener = IO::Socket::INET->new(
		Listen => 5,
		LocalAddr => '127.0.0.1',
		LocalPort => $args{port},
		ReuseAddr => 1) or croak "port $args{port}: $!";
	my $self = bless { %args }, $class;

	open my $log, '>', $args{log} or croak "$args{log}: $!";
	$log->autoflush(1);
	$self->{process} = Outbox::Process->start_code(
		name => 'hostile peer',
		code => sub {
			srand($args{seed});
			local $SIG{PIPE} = 'IGNORE';
			for (my $number = 0; my $socket = $listener->accept; $number++)
			{
				print $log _converse($socket, $NAMES[ $number % @NAMES ]), "\n";
				close $socket;
			}
		});
	close $listener;
	return $self;
}

sub stop { $_[0]{process}->kill9; return; }
sub running { return $_[0]{process}->running; }

# Lines of the log: what was done, one for each connection.
sub acts
{
	my ($self) = @_;

	open my $in, '<', $self->{log} or croak "$self->{log}: $!";
	my @lines = <$in>;
	close $in;
	chomp @lines;
	return @lines;
}

sub names { return @NAMES; }

# Read for some time; false at the end of the stream.
sub _hear
{
	my ($peer, $seconds) = @_;

	return 1 unless IO::Select->new($peer->{socket})->can_read($seconds);
	return sysread $peer->{socket}, $peer->{heard}, 65536, length $peer->{heard};
}

# The next thing it said: 'header', 'class method', or the payload of a body.
sub _next
{
	my ($peer, $seconds) = @_;
	my $end = time() + $seconds;

	while (1)
	{
		if ($peer->{heard} =~ s/^AMQP\0\0\x09\x01//)
		{
			return 'header';
		}
		if (length $peer->{heard} >= 8)
		{
			my ($type, $size) = unpack 'C x2 N', $peer->{heard};

			if (length $peer->{heard} >= $size + 8)
			{
				my $frame = substr $peer->{heard}, 0, $size + 8, '';

				return join ' ', unpack 'x7 nn', $frame if $type == 1;
				return 'body ' . substr $frame, 7, $size if $type == 3;
				next;
			}
		}
		return if time() > $end || !_hear($peer, 0.05);
	}
}

sub _say
{
	my ($peer, $bytes) = @_;

	$peer->{socket}->blocking(0);
	my $end = time() + 1;
	while (length $bytes && time() < $end)
	{
		my $sent = syswrite $peer->{socket}, $bytes;

		return if !defined $sent && !$!{EAGAIN};
		substr $bytes, 0, $sent, '' if $sent;
		Time::HiRes::sleep(0.01) unless $sent;
	}
	return;
}

sub _strike
{
	my ($peer, $act, $step) = @_;
	my $taken = '';

	if ($act eq 'ack twice')
	{
		if ($step == @ANSWERS)
		{
			my $said;

			# What it confirms is taken, and nobody else shall get it.
			do { $said = _next($peer, 1) } while (defined $said && $said !~ /^body/);
			$taken = ' {' . substr($said, 5) . '}' if defined $said;
		}
		_say($peer, _ack(1, 0) . _ack(1, 0));
	}
	elsif ($act eq 'reset')
	{
		setsockopt $peer->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
	}
	elsif ($ACTS{$act})
	{
		my $bytes = $ACTS{$act}->();

		_say($peer, $bytes) if defined $bytes;
		# It leaves by itself, or has to be left.
		my $end = time() + (rand() < 0.5 ? 0.1 : 1.2);
		while (time() < $end && _hear($peer, 0.05)) { $peer->{heard} = ''; }
	}
	return $taken;
}

# One connection; returns what was done.
sub _converse
{
	my ($socket, $act) = @_;
	my $peer = { socket => $socket, heard => '' };
	my $last = rand() < 0.5 ? @ANSWERS : int rand(@ANSWERS + 1);

	for my $step (0 .. $last - 1)
	{
		my $said;

		do
		{
			$said = _next($peer, 2);
			return "$act: gone before step $step" unless defined $said;
		} while ($said ne $QUESTIONS[$step]);
		_say($peer, $ANSWERS[$step]);
	}
	return "$act at step $last" . _strike($peer, $act, $last);
}

1;
