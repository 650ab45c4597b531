package Outbox::Proxy;

# A TCP proxy in front of a broker, and what networks do to a connection:
#
#   pass    all is well
#   freeze  nothing moves, nothing is lost: a line that hangs
#   drop    what is sent vanishes, both ways, and nobody is told; connections that
#           have lost something never recover
#   gone    nobody listens here, and what was connected is reset
#   reset   once: all connections are reset; then as before
#   cut     once: each connection is reset in the middle of what it sends next
#
# It is a process of its own, told over a local socket, so any process of a test
# may tell it.

use strict;
use warnings FATAL => 'all';

use Carp;
use Errno qw(EAGAIN EINTR);
use File::Temp;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use Socket qw(SOL_SOCKET SO_LINGER SOMAXCONN);

use Outbox::Broker;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

# Read so much at a time, and no more while as much is still to be written.
my $CHUNK = 65536;

# target: the port on the loopback address that is behind it
sub new
{
	my ($class, %args) = @_;
	my $dir = File::Temp::tempdir('proxy-XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $self = bless {
		target => $args{target},
		port => Outbox::Broker::free_port(),
		path => "$dir/control",
		mode => 'pass',
		ends => {},    # file number => one end of a connection
	}, $class;

	$self->{process} = Outbox::Process->start_code(
		name => 'proxy',
		code => sub { $self->_serve });
	wait_until('the proxy to answer', sub { eval { $self->tell('pass') } }, 10, 10);
	return $self;
}

sub port { return $_[0]{port}; }
sub uri { return "amqp://guest:guest\@127.0.0.1:$_[0]{port}/"; }
sub stop { $_[0]{process}->kill9; return; }

# Any process may call this.
sub tell
{
	my ($self, $command) = @_;
	my $control = IO::Socket::UNIX->new(Peer => $self->{path}, Timeout => 5)
	  or croak "proxy: $!";

	print $control "$command\n";
	$control->flush;
	my $answer = <$control> // '';
	croak "proxy: $command: $answer" if $answer ne "ok\n";
	return 1;
}

#
# the process
#

sub _listen
{
	my ($self) = @_;

	# where the port is taken for a moment, the next round tries again
	$self->{listener} //= IO::Socket::INET->new(
		Listen => SOMAXCONN,
		LocalAddr => '127.0.0.1',
		LocalPort => $self->{port},
		ReuseAddr => 1);
	return;
}

sub _serve
{
	my ($self) = @_;
	my $parent = getppid();

	$SIG{PIPE} = 'IGNORE';
	$self->{control} = IO::Socket::UNIX->new(Local => $self->{path}, Listen => SOMAXCONN)
	  or die "proxy: $self->{path}: $!";
	# a proxy does not outlive its test
	while (getppid() == $parent)
	{
		$self->_listen if $self->{mode} ne 'gone';
		$self->_turn;
	}
	return;
}

sub _turn
{
	my ($self) = @_;
	my $read = IO::Select->new($self->{control}, $self->{listener} // ());
	my $write = IO::Select->new;

	if ($self->{mode} ne 'freeze')
	{
		for my $end (values %{ $self->{ends} })
		{
			$read->add($end->{socket}) if length $end->{peer}{unwritten} < $CHUNK;
			$write->add($end->{socket}) if length $end->{unwritten};
		}
	}
	my ($readable, $writable) = IO::Select->select($read, $write, undef, 0.2);
	for my $socket (@{ $writable // [] })
	{
		my $end = $self->{ends}{ fileno($socket) // -1 };
		$self->_write($end) if $end;
	}
	for my $socket (@{ $readable // [] })
	{
		if ($socket == $self->{control}) { $self->_obey; }
		elsif ($self->{listener} && $socket == $self->{listener}) { $self->_accept; }
		else
		{
			my $end = $self->{ends}{ fileno($socket) // -1 };
			$self->_read($end) if $end && $self->{mode} ne 'freeze';
		}
	}
	return;
}

sub _obey
{
	my ($self) = @_;
	my $control = $self->{control}->accept or return;
	my $command = <$control> // '';
	my $answer = 'ok';

	chomp $command;
	if ($command =~ /^(?:pass|freeze|drop|gone)$/)
	{
		$self->{mode} = $command;
		$_->{lost} ||= $command eq 'drop' for values %{ $self->{ends} };
		if ($command eq 'gone')
		{
			close delete $self->{listener} if $self->{listener};
			$self->_reset_all;
		}
		$self->_listen if $command eq 'pass';
	}
	elsif ($command eq 'reset') { $self->_reset_all; }
	elsif ($command eq 'cut') { $_->{cut} = 1 for values %{ $self->{ends} }; }
	else { $answer = 'no such command'; }
	print $control "$answer\n";
	close $control;
	return;
}

sub _accept
{
	my ($self) = @_;
	my $client = $self->{listener}->accept or return;
	my $server = IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $self->{target},
		Timeout => 5);

	return _reset($client) if !$server;
	my @ends = map { { socket => $_, unwritten => '', lost => $self->{mode} eq 'drop', cut => 0 } }
	  ($client, $server);
	for my $i (0, 1)
	{
		$ends[$i]{socket}->blocking(0);
		$ends[$i]{peer} = $ends[ 1 - $i ];
		$self->{ends}{ fileno $ends[$i]{socket} } = $ends[$i];
	}
	return;
}

sub _read
{
	my ($self, $end) = @_;
	my $data;
	my $got = sysread $end->{socket}, $data, $CHUNK;

	return if !defined $got && ($! == EAGAIN || $! == EINTR);
	return $end->{lost} ? $self->_vanish($end) : $self->_close($end) if !$got;
	return if $end->{lost};
	if ($end->{cut})
	{
		$end->{peer}{unwritten} .= substr $data, 0, $got / 2;
		$self->_write($end->{peer});
		return $self->_close($end, 1);
	}
	$end->{peer}{unwritten} .= $data;
	return $self->_write($end->{peer});
}

sub _write
{
	my ($self, $end) = @_;
	my $put = syswrite $end->{socket}, $end->{unwritten};

	if (defined $put) { substr $end->{unwritten}, 0, $put, ''; }
	elsif ($! != EAGAIN && $! != EINTR) { $self->_close($end); }
	return;
}

sub _reset
{
	my ($socket) = @_;

	setsockopt $socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
	close $socket;
	return;
}

# One end of a connection that has lost something is closed: the other is not told.
sub _vanish
{
	my ($self, $end) = @_;

	delete $self->{ends}{ fileno $end->{socket} };
	close $end->{socket};
	$end->{peer}{peer} = { unwritten => '' };
	delete $end->{peer};
	return;
}

# Both ends of a connection, in order or by a reset.
sub _close
{
	my ($self, $end, $reset) = @_;

	return if !$self->{ends}{ fileno($end->{socket}) // -1 };
	for my $one (grep { $_->{socket} } $end, $end->{peer})
	{
		delete $self->{ends}{ fileno $one->{socket} };
		syswrite $one->{socket}, $one->{unwritten} if !$reset && length $one->{unwritten};
		$reset ? _reset($one->{socket}) : close $one->{socket};
	}
	delete $end->{peer}{peer};
	delete $end->{peer};
	return;
}

sub _reset_all
{
	my ($self) = @_;

	while (my ($end) = values %{ $self->{ends} })
	{
		$self->_close($end, 1);
	}
	return;
}

1;
