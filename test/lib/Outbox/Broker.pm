package Outbox::Broker;

# A private RabbitMQ node: own ports on the loopback address, own epmd, own data,
# gone at the end of the test.
#
# Erlang looks for each module in every directory of its path, and a packaged
# RabbitMQ has sixty plugins there: that takes it 10 s to start.  So the node runs
# from a tree of symbolic links which holds only the applications that `rabbit`
# needs, with all their modules in one directory in front: 4 s.

use strict;
use warnings FATAL => 'all';

use Carp;
use Cwd qw(abs_path);
use File::Basename;
use File::Temp;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(time);

use Outbox::Consumer;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $COOKIE = 'outboxtests';

# Outbox::Broker->new(config => '{vm_memory_high_watermark, 0.4}, ...', schedulers => 2,
#                     name => 'rabbit', beside => $broker)
#
# With `beside` it shares the epmd and the program files of another one, which then has
# to outlive it: the two can form a cluster.
sub new
{
	my ($class, %args) = @_;
	my $dir = File::Temp::tempdir('outbox-rabbitmq-XXXXXX', TMPDIR => 1, CLEANUP => 1);
	my $beside = $args{beside};
	my $self = bless {
		dir => $dir,
		node => ($args{name} // 'rabbit') . '@localhost',
		beside => $beside,
		port => free_port(),
		dist_port => free_port(),
		ctl_port => free_port(),
		epmd_port => $beside ? $beside->{epmd_port} : free_port(),
		config => $args{config} // '',
		schedulers => $args{schedulers} // 2,
		start_timeout => $args{start_timeout} // 90,
		log => "$dir/output.log",
		consumers => 0,
	}, $class;

	if ($beside) { $self->{tree} = $beside->{tree}; }
	else { $self->_make_tree; }
	$self->_write_files;
	return $self;
}

sub port { return $_[0]{port}; }
sub dir { return $_[0]{dir}; }
sub node { return $_[0]{node}; }
sub uri { return "amqp://guest:guest\@127.0.0.1:$_[0]{port}/"; }
sub pid { return $_[0]{server} ? $_[0]{server}->pid : undef; }
sub running { return $_[0]{server} && $_[0]{server}->running; }

# A port that is free and stays free: outside the range from which the kernel
# takes the local ports of outgoing connections.  (A client that retries a port of
# that range on the loopback address will in the end connect to itself.)
sub free_port
{
	for (1 .. 200)
	{
		my $port = 10000 + int(rand(20000));
		my $socket = IO::Socket::INET->new(
			Listen => 1,
			LocalAddr => '127.0.0.1',
			LocalPort => $port,
			ReuseAddr => 1) or next;
		close $socket;
		return $port;
	}
	croak 'no free port';
}

# Path of one of the tests' own programs.
sub tool
{
	my ($self, $name) = @_;
	my $dir = $ENV{OUTBOX_TOOLS} // abs_path(dirname(__FILE__) . '/../../tools');

	croak "$dir/$name is not built (./dev build)" unless -x "$dir/$name";
	return "$dir/$name";
}

#
# the node's files
#

# .../rabbitmq_server-X.Y.Z, which has sbin, plugins and escript
sub _server_home
{
	return $ENV{OUTBOX_RABBITMQ_HOME} if $ENV{OUTBOX_RABBITMQ_HOME};
	for my $script ('/usr/lib/rabbitmq/bin/rabbitmq-server',
		'/opt/rabbitmq/sbin/rabbitmq-server')
	{
		return dirname(dirname(abs_path($script))) if -x $script;
	}
	croak 'rabbitmq-server is not installed';
}

# Directories below plugins/ that the application needs, itself included.
sub _application_dirs
{
	my ($plugins, @wanted) = @_;
	my (%dirs, %seen);

	for my $dir (glob "$plugins/*")
	{
		$dirs{$1} = $dir if basename($dir) =~ /^(\w+)-[\d.]+/ && -d "$dir/ebin";
	}
	while (defined(my $application = shift @wanted))
	{
		next if $seen{$application}++ || !$dirs{$application};
		open my $in, '<', "$dirs{$application}/ebin/$application.app" or next;
		my $text = do { local $/; <$in> };
		close $in;
		push @wanted, $1 =~ /(\w+)/g
		  while $text =~ /\{\s*(?:included_|optional_)?applications\s*,\s*\[([^\]]*)\]/g;
	}
	return map { $dirs{$_} } grep { $dirs{$_} } sort keys %seen;
}

sub _make_tree
{
	my ($self) = @_;
	my $home = _server_home();
	my $tree = "$self->{dir}/server";
	my @dirs = _application_dirs("$home/plugins", 'rabbit', 'cuttlefish');

	croak "cannot find the application rabbit in $home/plugins"
	  unless grep { basename($_) =~ /^rabbit-/ } @dirs;
	mkdir $_ or croak "$_: $!" for $tree, "$tree/sbin", "$tree/plugins", "$tree/modules";
	symlink $_, "$tree/plugins/" . basename($_) for @dirs;
	symlink "$home/escript", "$tree/escript";
	# copies: a script finds its tree by following its own link
	system('cp', '-L', glob("$home/sbin/*"), "$tree/sbin") == 0 or croak 'cp';
	for my $module (map { glob "$_/ebin/*.beam" } @dirs,
		glob('/usr/lib/erlang/lib/*'))
	{
		symlink $module, "$tree/modules/" . basename($module);
	}
	$self->{tree} = $tree;
	return;
}

sub _write
{
	my ($path, $text, $mode) = @_;

	open my $out, '>', $path or croak "$path: $!";
	print $out $text;
	close $out or croak "$path: $!";
	chmod $mode, $path if defined $mode;
	return;
}

sub _write_files
{
	my ($self) = @_;
	my $extra = $self->{config} eq '' ? '' : ",\n  $self->{config}";

	_write("$self->{dir}/.erlang.cookie", $COOKIE, 0400);
	_write("$self->{dir}/enabled_plugins", "[].\n");
	_write("$self->{dir}/rabbitmq.config", <<"END");
[{rabbit, [
  {tcp_listeners, [{"127.0.0.1", $self->{port}}]},
  {disk_free_limit, 1000000}$extra
]}].
END
	$self->{env} = {
		HOME => $self->{dir},
		LC_ALL => 'C.UTF-8',
		ERL_EPMD_PORT => $self->{epmd_port},
		ERL_EPMD_ADDRESS => '127.0.0.1',
		RABBITMQ_NODENAME => $self->{node},
		RABBITMQ_DIST_PORT => $self->{dist_port},
		RABBITMQ_MNESIA_BASE => "$self->{dir}/data",
		RABBITMQ_LOG_BASE => "$self->{dir}/log",
		RABBITMQ_PLUGINS_DIR => "$self->{tree}/plugins",
		RABBITMQ_ENABLED_PLUGINS_FILE => "$self->{dir}/enabled_plugins",
		RABBITMQ_FEATURE_FLAGS_FILE => "$self->{dir}/feature_flags",
		RABBITMQ_CONFIG_FILE => "$self->{dir}/rabbitmq",
		RABBITMQ_CONF_ENV_FILE => '/dev/null',
		RABBITMQ_PID_FILE => "$self->{dir}/pid",
		RABBITMQ_SERVER_CODE_PATH => "$self->{tree}/modules",
		# several nodes and a database share these cores
		RABBITMQ_SCHEDULER_BIND_TYPE => 'u',
		RABBITMQ_CTL_DIST_PORT_MIN => $self->{ctl_port},
		RABBITMQ_CTL_DIST_PORT_MAX => $self->{ctl_port},
		# with a node name from the start RabbitMQ need not start a second
		# Erlang only to find out whether there is an epmd
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS => join(' ',
			"-sname $self->{node}",
			'-start_epmd false',
			'-kernel inet_dist_use_interface {127,0,0,1}',
			"-kernel inet_dist_listen_min $self->{dist_port}",
			"-kernel inet_dist_listen_max $self->{dist_port}",
			"+S $self->{schedulers}:$self->{schedulers}"),
		# the script becomes the node instead of waiting for it, so that the pid
		# of the one is that of the other
		RUNNING_UNDER_SYSTEMD => 'true',
	};
	delete $ENV{NOTIFY_SOCKET};
	return;
}

#
# start and stop
#

sub _port_open
{
	my ($port) = @_;
	my $socket = IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $port,
		Timeout => 2) or return 0;

	close $socket;
	return 1;
}

sub _start_epmd
{
	my ($self) = @_;

	return $self->{beside}->_start_epmd if $self->{beside};
	return if $self->{epmd} && $self->{epmd}->running;
	$self->{epmd} = Outbox::Process->start(
		name => 'epmd',
		log => "$self->{dir}/epmd.log",
		command => [ 'epmd', '-address', '127.0.0.1', '-port', $self->{epmd_port} ]);
	wait_until('epmd to listen', sub { _port_open($self->{epmd_port}) }, 10, 5);
	return;
}

# Start it but do not wait.
sub launch
{
	my ($self) = @_;

	croak 'the broker is already running' if $self->running;
	$self->_start_epmd;
	$self->{started_at} = time();
	$self->{server} = Outbox::Process->start(
		name => 'RabbitMQ',
		log => $self->{log},
		env => $self->{env},
		command => ["$self->{tree}/sbin/rabbitmq-server"]);
	return;
}

# Wait until a client can log in.  Returns the seconds since launch().
sub wait_ready
{
	my ($self) = @_;

	wait_until(
		"RabbitMQ to listen on port $self->{port}",
		sub {
			$self->running or croak "RabbitMQ did not start:\n" . $self->log_tail;
			return _port_open($self->{port});
		},
		$self->{start_timeout},
		20);
	$self->amqp('ping', '--wait', 30);
	return time() - $self->{started_at};
}

sub start
{
	my ($self) = @_;

	$self->launch;
	return $self->wait_ready;
}

# In good order: RabbitMQ closes its queues and files first.
sub stop
{
	my ($self) = @_;

	$self->{server}->stop(30) if $self->{server};
	return;
}

sub kill9
{
	my ($self) = @_;

	$self->{server}->kill9 if $self->{server};
	return;
}

# Frozen, with all its connections left open.
sub sigstop { $_[0]{server}->signal('STOP'); return; }
sub sigcont { $_[0]{server}->signal('CONT'); return; }

sub teardown
{
	my ($self) = @_;

	for my $process (delete @{$self}{qw(server epmd)})
	{
		$process->kill9 if $process;
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($@, $?, $!);
	$self->teardown;
	return;
}

sub log_tail
{
	my ($self) = @_;
	my $text = '';

	for my $file ($self->{log}, glob "$self->{dir}/log/*.log")
	{
		open my $in, '<', $file or next;
		my @lines = <$in>;
		close $in;
		splice @lines, 0, -30 if @lines > 30;
		$text .= "==> $file\n" . join('', @lines);
	}
	return $text;
}

#
# talking to it
#

# capture(\%environment, COMMAND...): its exit status and all it printed
sub capture
{
	my ($self, $env, @command) = @_;
	my $pid = open(my $out, '-|') // croak "fork: $!";

	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDERR, '>&', \*STDOUT;
		$ENV{$_} = $env->{$_} for keys %$env;
		{ exec @command; }
		POSIX::_exit(127);
	}
	my $text = do { local $/; <$out> } // '';
	close $out;
	my $status = $?;
	chomp $text;
	return ($status, $text);
}

# amqptool VERB ...; dies if that fails, returns what it printed.
sub amqp
{
	my ($self, @arguments) = @_;
	my ($status, $text) = $self->capture({}, $self->tool('amqptool'),
		'--uri', $self->uri, @arguments);

	croak "amqptool @arguments: $text" if $status != 0;
	return $text;
}

sub rabbitmqctl
{
	my ($self, @arguments) = @_;
	my ($status, $text) = $self->capture($self->{env},
		"$self->{tree}/sbin/rabbitmqctl", @arguments);

	croak "rabbitmqctl @arguments: $text" if $status != 0;
	return $text;
}

# Evaluate an Erlang expression in the node: a few milliseconds, where rabbitmqctl
# takes most of a second.
sub eval_erlang
{
	my ($self, $expression) = @_;
	my $file = "$self->{dir}/eval.$$.erl";    # children of a test may ask as well

	_write($file, "$expression.\n");
	my ($status, $text) = $self->capture($self->{env}, 'sh', '-c',
		'exec erl_call -sname "$0" -c "$1" -timeout 20 -e < "$2"',
		$self->{node}, $COOKIE, $file);
	unlink $file;
	croak "erl_call: $text" if $status != 0 || $text !~ /^\{ok,/;
	return $text;
}

# A memory alarm as the memory monitor raises it: publishers are blocked until it
# is cleared.
sub set_memory_alarm
{
	my ($self) = @_;

	$self->eval_erlang('rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})');
	wait_until('the memory alarm', sub { $self->has_alarm }, 10, 10);
	return;
}

sub clear_memory_alarm
{
	my ($self) = @_;

	$self->eval_erlang('rabbit_alarm:clear_alarm({resource_limit, memory, node()})');
	wait_until('the end of the memory alarm', sub { !$self->has_alarm }, 10, 10);
	return;
}

sub has_alarm
{
	my ($self) = @_;

	return $self->eval_erlang('rabbit_alarm:get_alarms()') !~ /^\{ok,\s*\[\]\}/;
}

# Write down everything that arrives in a queue.
sub start_consumer
{
	my ($self, $queue, %args) = @_;
	my $number = $self->{consumers}++;

	return Outbox::Consumer->new(
		broker => $self,
		queue => $queue,
		file => $args{file} // "$self->{dir}/received.$number",
		uri => $args{uri},
		options => $args{options});
}

1;
