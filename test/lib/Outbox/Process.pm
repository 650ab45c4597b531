package Outbox::Process;

# A child process that cannot outlive its test: it is known by its pid, leads its
# own process group, and the kernel kills it should the test itself be killed.

use strict;
use warnings FATAL => 'all';

use Carp;
use POSIX qw(:sys_wait_h);

use Outbox::Wait qw(wait_until);

my %alive;    # pid => object

# Outbox::Process->start(name => ..., command => [...], env => {...}, log => file)
sub start
{
	my ($class, %args) = @_;
	my $parent = $$;
	my $pid = fork() // croak "fork: $!";

	if ($pid == 0)
	{
		setpgrp(0, 0);
		open STDIN, '<', '/dev/null' or POSIX::_exit(126);
		open STDOUT, '>>', $args{log} // '/dev/null' or POSIX::_exit(126);
		open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
		$ENV{$_} = $args{env}{$_} for keys %{ $args{env} // {} };
		{ exec 'setpriv', '--pdeathsig', 'KILL', '--', @{ $args{command} }; }
		POSIX::_exit(127);
	}
	my $self = bless {
		name => $args{name},
		pid => $pid,
		owner => $parent,
		status => undef
	}, $class;
	$alive{$pid} = $self;
	return $self;
}

# Run Perl code in a child: the code never returns into the test.  Without a log
# it speaks where the test does.
sub start_code
{
	my ($class, %args) = @_;
	my $parent = $$;
	my $pid = fork() // croak "fork: $!";

	if ($pid == 0)
	{
		setpgrp(0, 0);
		%alive = ();
		$SIG{$_} = 'DEFAULT' for qw(TERM INT HUP);
		open STDIN, '<', '/dev/null' or POSIX::_exit(126);
		if ($args{log})
		{
			open STDOUT, '>>', $args{log} or POSIX::_exit(126);
			open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
			$| = 1;
		}
		my $done = eval { $args{code}->(); 1 };
		warn $@ unless $done;
		POSIX::_exit($done ? 0 : 1);
	}
	my $self = bless {
		name => $args{name},
		pid => $pid,
		owner => $parent,
		status => undef
	}, $class;
	$alive{$pid} = $self;
	return $self;
}

sub pid { return $_[0]{pid}; }

sub running
{
	my ($self) = @_;

	return 0 if defined $self->{status};
	if (waitpid($self->{pid}, WNOHANG) == $self->{pid})
	{
		$self->{status} = $?;
		delete $alive{ $self->{pid} };
		return 0;
	}
	return 1;
}

sub signal
{
	my ($self, $signal) = @_;

	kill $signal, $self->{pid} if $self->running;
	return;
}

sub wait_exit
{
	my ($self, $timeout) = @_;

	wait_until("$self->{name} (pid $self->{pid}) to end",
		sub { !$self->running }, $timeout // 30, 10);
	return $self->{status};
}

# Ask it to end, and do not take no for an answer.
sub stop
{
	my ($self, $timeout) = @_;

	return unless $self->running;
	kill 'TERM', $self->{pid};
	eval { $self->wait_exit($timeout // 10); 1 } or $self->kill9;
	return;
}

# The process and whatever it started.
sub kill9
{
	my ($self) = @_;

	return unless $self->running;
	kill 'CONT', $self->{pid};
	kill 'KILL', -$self->{pid}, $self->{pid};
	$self->wait_exit(30);
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($@, $?, $!);
	$self->kill9 if $self->{owner} == $$ && !defined $self->{status};
	return;
}

# A test that is told to stop must still run its END blocks.
for my $signal (qw(TERM INT HUP))
{
	$SIG{$signal} = sub { exit 1; }
	  unless ref $SIG{$signal};
}

END
{
	local ($@, $?, $!);
	for my $process (values %alive)
	{
		eval { $process->kill9 if $process->{owner} == $$; };
	}
}

1;
