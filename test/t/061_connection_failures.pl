# Proves that each way in which a connection to the broker can fail is bounded in time;
# is told in outbox.status, in pg_stat_activity and in the server log, there once
# however often it is tried; holds up neither DROP DATABASE nor a fast shutdown; and
# that everything is delivered afterwards.
#
# Each failure has a database and a broker of its own, so that all of them fail at the
# same time, side by side.

use strict;
use warnings FATAL => 'all';

use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils;
use Outbox::Broker;
use Outbox::FakeBroker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $TRIES = 3;
my $STALL = q{outbox.connect_timeout = '500ms'};
my $SILENCE = q{outbox.heartbeat = '1s'};
my $CONFIRMS = q{outbox.confirm_timeout = '1s'};
my $RETRIES = q{outbox.retry_delay_min = '100ms'};
# once it is clear who is to blame
my $STALLED = qr/exchange "" with routing key "[^"]*" takes no messages: RabbitMQ does not confirm/;
my $LONG_NAME = ('x' x 70) . '.example';    # longer than DNS allows: fails at once

# name => orders for the broker, what is said of it (%s: the broker), and what differs
# from a database with one broker in which five small messages wait
my @TABLE = (
	'refused' => [ { down => 1 }, 'could not connect to RabbitMQ at "%s": Connection refused' ],
	'all of two' => [
		{ down => 1 }, 'could not connect to RabbitMQ at "%s": Connection refused', brokers => 2 ],
	'no such host' => [
		undef, 'could not connect to RabbitMQ at "%s": Name or service not known',
		brokers => 0, host => "$LONG_NAME:5672" ],
	'no greeting' => [
		{ stall => 'start' }, 'RabbitMQ at "%s" did not answer within 500 ms before login',
		setting => $STALL ],
	'no answer to login' => [
		{ stall => 'tune' }, 'RabbitMQ at "%s" did not answer within 500 ms while logging in',
		setting => $STALL ],
	'no virtual host' => [
		{ stall => 'open' },
		'RabbitMQ at "%s" did not answer within 500 ms while opening the virtual host',
		setting => $STALL ],
	'no channel' => [
		{ stall => 'channel' },
		'RabbitMQ at "%s" did not answer within 500 ms while opening a channel',
		setting => $STALL ],
	'no confirm mode' => [
		{ stall => 'confirm' },
		'RabbitMQ at "%s" did not answer within 500 ms while opening a channel',
		setting => $STALL ],
	'closed before login' => [
		{ close => 'start' },
		'RabbitMQ at "%s" ended the connection before login: closed by the server' ],
	'closed at login' => [
		{ close => 'tune' },
		'RabbitMQ at "%s" ended the connection during the login of user "guest", '
		  . 'whose password may be wrong: closed by the server' ],
	'closed at open' => [
		{ close => 'open' },
		'RabbitMQ at "%s" ended the connection while opening the virtual host: closed by the server'
	],
	'reset' => [
		{ reset => 'ready' },
		'lost the connection to RabbitMQ at "%s": Connection reset by peer' ],
	'sent away' => [
		{ refuse => [ 'ready', 320, 'CONNECTION_FORCED - later' ] },
		'RabbitMQ at "%s" closed the connection: CONNECTION_FORCED - later (320)' ],
	'half-open' => [
		{ stall => 'ready' }, 'no heartbeat from RabbitMQ at "%s" for 2 s', setting => $SILENCE ],
	'half-open and idle' => [
		{ stall => 'ready' }, 'no heartbeat from RabbitMQ at "%s" for 2 s',
		setting => $SILENCE, messages => 0 ],
	'no confirms' => [
		{ answer => 'none' },
		'left RabbitMQ at "%s": the oldest of ',
		setting => $CONFIRMS, growing => 1, state => 'idle', then => $STALLED ],
	# more than the sockets hold
	'does not read' => [
		{ deaf => 'all' }, 'left RabbitMQ at "%s": the oldest of ',
		setting => $CONFIRMS, size => 1_500_000, state => 'idle', then => $STALLED ]);

my $broker = Outbox::Broker->new;
$broker->launch;    # takes its time; the rest meanwhile
my $node = Outbox::Node->create(
	'main',
	extension => 0,
	conf => <<'END');
fsync = off
autovacuum = off
max_worker_processes = 40
outbox.connect_timeout = '4s'
outbox.heartbeat = '4s'
outbox.confirm_timeout = '5s'
outbox.passfile = 'passfile'
END

#
# cases: a database, its brokers, what is in it
#

sub make_case
{
	my ($name, %args) = @_;
	my $fakes = $args{fakes} // [];
	my $uri = $args{uri} // join ',', map { $_->uri } @$fakes;

	return {
		name => $name,
		database => $name =~ s/\W/_/gr,
		fakes => $fakes,
		at => $args{at} // [ map { '127.0.0.1:' . $_->port } @$fakes ],
		settings => [ "outbox.uri = '$uri'", $args{setting} // (), $RETRIES ],
		sent => [],
		%args{qw(orders error messages size growing state then create)}
	};
}

# Run a script in the database of each case, all in one session; returns the rows by
# database.
sub in_each
{
	my ($script, @in) = @_;
	my (%rows, $database);

	my $all = join "\n", map { "\\connect $_->{database}\n\\echo \@$_->{database}\n$script" } @in;
	for my $line (split /\n/, @in ? $node->safe_psql('postgres', $all) : '')
	{
		if ($line =~ /^\@(\w+)$/) { $database = $1; }
		else { push @{ $rows{$database} }, $line; }
	}
	return \%rows;
}

sub enqueue
{
	my ($count, @in) = @_;

	for my $size (1, 1_500_000)
	{
		my @these = grep { ($_->{size} // 1) == $size && ($_->{messages} // 1) } @in;
		my $rows = in_each(
			"SELECT outbox.enqueue('', 'orders', repeat('x', $size)) FROM generate_series(1, $count);",
			@these);

		push @{ $_->{sent} }, @{ $rows->{ $_->{database} } } for @these;
	}
	return;
}

# What of a case has not been confirmed by one of its brokers?
sub undelivered
{
	my ($case) = @_;
	my %confirmed = map { %{ $_->confirmed } } @{ $case->{fakes} };

	return grep { !$confirmed{$_} } @{ $case->{sent} };
}

sub wait_delivered
{
	my (@in) = @_;

	my $rows;
	return eval {
		wait_until(
			'all messages to be confirmed',
			sub {
				return 0 if grep { @{ $_->{fakes} } && undelivered($_) } @in;
				$rows = in_each(
					'SELECT pending + deferred + in_flight FROM outbox.status;', @in);
				return !grep { $_->[0] } values %$rows;
			},
			30, 100);
	} // diag $@, explain $rows;
}

# What outbox says of a broker in the server log from a position on.
sub log_lines
{
	my ($about, $from) = @_;

	return grep { index($_, $about) >= 0 }
	  slurp_file($node->logfile, $from // 0) =~ /LOG:  outbox: (.*)/g;
}

sub log_end { return -s $node->logfile; }

# What an operator sees of each case.
sub look
{
	my (@in) = @_;
	my $rows = in_each(
		q{SELECT s.state, s.last_error, s.last_error_at, a.query
			FROM outbox.status s LEFT JOIN pg_stat_activity a ON a.pid = s.worker_pid;}, @in);
	my %seen;

	@{ $seen{$_} }{qw(state last_error at activity)} = split /\|/, $rows->{$_}[0], 4 for keys %$rows;
	return \%seen;
}

# Wait until each has failed again and again, and is seen to; returns what was seen.
sub wait_failing
{
	my ($tries, @in) = @_;
	my %waiting = map { $_->{database} => $_ } @in;
	my (%seen, %failed);

	eval {
		wait_until(
			'everything to fail',
			sub {
				my $now = look(values %waiting);

				for my $name (keys %waiting)
				{
					my ($case, $this) = ($waiting{$name}, $now->{$name});

					$seen{$name} = $this;
					$failed{$name}{ $this->{at} // '' }++;
					delete $waiting{$name}
					  if keys %{ $failed{$name} } >= $tries &&
					  ($this->{activity} // '') =~ /^\w+: $case->{seen}/;
				}
				enqueue(1, grep { $_->{growing} } values %waiting);
				# as after a change of settings, the next attempt comes at once
				$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
				return !%waiting;
			},
			20, 20);
	} or diag $@;
	return \%seen;
}

my @cases;
while (my ($name, $row) = splice @TABLE, 0, 2)
{
	my ($orders, $error, %args) = @$row;
	my @fakes = map { Outbox::FakeBroker->new } 1 .. ($args{brokers} // 1);

	$args{at} = [ $args{host} ] if $args{host};
	$args{uri} = "amqp://guest\@$args{host}/" if $args{host};
	push @cases, make_case($name, fakes => \@fakes, orders => $orders, error => $error, %args);
}
for my $case (@cases)
{
	my $errors = join '|', map { quotemeta sprintf $case->{error}, $_ } @{ $case->{at} };

	$case->{logged} = qr/(?:$errors)/;
	$case->{seen} = $case->{then} // $case->{logged};
}

my $endpoint = '127.0.0.1:' . $broker->port;
my ($dead, $first, $second, $flapping) = map { Outbox::FakeBroker->new } 1 .. 4;
$dead->behave(down => 1);
my $next = make_case('next', fakes => [ $dead, $second ]);
my $moving = make_case('moving', fakes => [ $first, $second ]);
# whose virtual host has a name that its encoding does not know
my $alarms = make_case(
	'alarms',
	fakes => [$flapping],
	uri => $flapping->uri . '%C3%BC',
	create => q{ENCODING 'EUC_JP' LOCALE 'C' TEMPLATE template0});
my $password = make_case('password', uri => "amqp://stranger\@$endpoint/");
my $vhost = make_case('vhost', uri => "amqp://guest\@$endpoint/nope");
my $blocked = make_case('blocked', uri => "amqp://guest\@$endpoint/");
my @all = (@cases, $next, $moving, $alarms);
my @faked = grep { @{ $_->{fakes} } } @all;
my @real = ($password, $vhost, $blocked);

for my $case ($password, $vhost)
{
	my ($at, $user, $reason) = $case == $password
	  ? ("$endpoint/", 'stranger', qr/ACCESS_REFUSED .*\(403\)/)
	  : ("$endpoint/nope", 'guest', qr/NOT_ALLOWED - vhost nope not found.*\(530\)/);

	$case->{at} = [$at];
	$case->{logged} = $case->{seen} = qr{RabbitMQ at "\Q$at\E" refused the login of user "$user": $reason};
}

sub write_passfile
{
	my ($secret) = @_;
	my $file = $node->data_dir . '/passfile';

	unlink $file;
	append_to_file($file, "*:*:*:stranger:$secret\n");
	chmod 0600, $file or die "$file: $!";
	return;
}

write_passfile('tr0ub4dor');
# the quickest way to make so many
my $strategy = $node->value('SHOW server_version_num') >= 150000 ? 'STRATEGY file_copy' : '';
sub settings
{
	my ($case, @settings) = @_;

	return map { "ALTER DATABASE $case->{database} SET $_;\n" } @settings;
}
$node->safe_psql('postgres', join '',
	(map { ("CREATE DATABASE $_->{database} $strategy @{[ $_->{create} // '' ]};\n", settings($_, @{ $_->{settings} })) }
		@all, @real),
	map { "CREATE DATABASE other$_ $strategy;\n" } 1 .. 3);
in_each('CREATE EXTENSION outbox;', @all);
enqueue(1, @faked);
$broker->wait_ready;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
in_each('CREATE EXTENSION outbox;', @real);
enqueue(1, @real);
wait_delivered(@faked, $blocked);

#
# everything fails
#

sub break_brokers
{
	for my $case (@_)
	{
		my ($orders) = $case->{orders};
		my $step = $orders->{stall} // $orders->{close} // 'ready';

		for my $fake (@{ $case->{fakes} })
		{
			# what awaits the next connection would leave this one as it is
			$fake->behave(down => 1) if $step ne 'ready';
			$fake->behave(%$orders);
		}
	}
	enqueue(5, @_);
	return;
}

break_brokers(@cases);

# meanwhile: an alarm that comes and goes, and comes to stay
for my $blocks (1, 0, 1, 0, 1)
{
	$flapping->behave($blocks ? (blocked => 'low on memory') : ());
	$node->wait_for('the alarm to come or go',
		'SELECT state FROM outbox.status', dbname => 'alarms', poll_ms => 10,
		expected => $blocks ? 'blocked' : 'idle');
}

is($node->status('last_error', 'alarms'),
	'RabbitMQ at "127.0.0.1:' . $flapping->port . '/??" has blocked publishing: low on memory',
	'what the database cannot write is replaced');

my $seen = wait_failing($TRIES, @cases, $password, $vhost);
for my $case (@cases, $password, $vhost)
{
	subtest "$case->{name}: while it lasts" => sub {
		my $this = $seen->{ $case->{database} };
		my %count;

		my $state = $case->{state} // '(?:connecting|publishing)';

		like($this->{activity}, qr/^$state: $case->{seen}/, 'pg_stat_activity');
		like($this->{state}, qr/^$state$/, 'state');
		like($this->{last_error}, qr/^$case->{seen}/, 'last_error');
		for my $at (@{ $case->{at} })
		{
			my @lines = grep { m{"\Q$at\E[/"]} } log_lines($at);

			$count{$_}++ for @lines;
			is(scalar(grep { /^$case->{logged}/ } @lines), 1, "once in the log: $at");
		}
		# where only destinations are at fault, the next connection stays
		my @twice = grep { $count{$_} > 1 && !($case->{then} && /^connected/) } keys %count;
		is_deeply(\@twice, [], 'as is all else')
		  or diag slurp_file($node->logfile) =~ /^.*(?:ERROR|FATAL|\Q$case->{at}[0]\E).*\n/mg;
	};
}
unlike(slurp_file($node->logfile), qr/tr0ub4dor/, 'no password in the log');

subtest 'first of two URIs dead' => sub {
	is($node->status('broker', 'next'), '127.0.0.1:' . $second->port . '/', 'connected to the second');
	is_deeply([ log_lines($dead->port) ],
		[ "could not connect to RabbitMQ at \"127.0.0.1:@{[ $dead->port ]}\": Connection refused" ],
		'once in the log');
	is_deeply([ undelivered($next) ], [], 'delivered');
};

subtest 'the broker in use stops, the other lives' => sub {
	my $at = '127.0.0.1:' . $first->port;
	my $reconnects = $node->status('reconnects', 'moving');

	is($node->status('broker', 'moving'), "$at/", 'connected to the first');
	$first->behave(down => 1);
	enqueue(3, $moving);
	wait_delivered($moving);
	is($node->status('broker', 'moving'), '127.0.0.1:' . $second->port . '/', 'then to the second');
	is($node->status('reconnects', 'moving'), $reconnects + 1, 'after one reconnect');
	is_deeply([ log_lines($at) ],
		[
			qq{connected to RabbitMQ at "$at/"},
			qq{lost the connection to RabbitMQ at "$at": closed by the server}
		],
		'the log tells it');
	is(scalar(grep { $second->confirmed->{$_} } @{ $moving->{sent} }), 3, 'delivered there');
};

# A heartbeat wakes nobody, and unread it would turn the end of the connection into a
# reset, which may take the goodbye with it.
subtest 'another outbox.uri, with a heartbeat that has not been read' => sub {
	my $fake = Outbox::FakeBroker->new;
	my $use = sub {
		$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.uri = '$_[0]'");
		$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	};

	$node->safe_psql('postgres', "CREATE DATABASE moved $strategy");
	$node->safe_psql('moved', 'CREATE EXTENSION outbox');
	$use->($fake->uri);
	$node->wait_connected(dbname => 'moved');
	$fake->behave(beat => 1);
	$use->('');
	wait_until('the goodbye', sub { $fake->goodbyes }, 20);
	is_deeply([ $fake->goodbyes ], ['closed'], 'the connection is closed, not reset');
};

sub set_alarm
{
	my ($resource, $on) = @_;
	my $source = "{resource_limit, $resource, node()}";

	$broker->eval_erlang('rabbit_alarm:'
		  . ($on ? "set_alarm({$source, []})" : "clear_alarm($source)"));
	return;
}

for my $resource (qw(memory disk))
{
	subtest "blocked by a $resource alarm" => sub {
		my $error = qq{RabbitMQ at "$endpoint/" has blocked publishing: low on $resource};
		my $from = log_end();

		set_alarm($resource, 1);
		enqueue(3, $blocked);
		$node->wait_for('the broker to block', q{SELECT state = 'blocked' FROM outbox.status},
			dbname => 'blocked', timeout => 20, poll_ms => 10);
		enqueue(1, $blocked);
		my $this = look($blocked)->{blocked};
		is($this->{last_error}, $error, 'last_error');
		is($this->{activity}, "blocked: $error", 'pg_stat_activity');
		is($node->status('pending', 'blocked'), 4, 'messages wait');
		set_alarm($resource, 0);
		wait_delivered($blocked);
		is_deeply([ log_lines("$endpoint/\"", $from) ],
			[ $error, qq{RabbitMQ at "$endpoint/" allows publishing again} ], 'once in the log');
	};
}

#
# the failures end
#

my $from = log_end();
for my $fake (map { @{ $_->{fakes} } } @cases)
{
	$fake->behave(down => 1);
	$fake->behave;
}
write_passfile('right');
$broker->eval_erlang(join ', ', map { "rabbit_auth_backend_internal:$_" }
	  'add_user(<<"stranger">>, <<"right">>, <<"test">>)',
	'set_permissions(<<"stranger">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>)');
in_each(<<"END", $vhost, grep { !@{ $_->{fakes} } } @cases);
ALTER DATABASE :"DBNAME" SET outbox.uri = 'amqp://guest\@$endpoint/';
SELECT outbox.reload();
END
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
wait_delivered(@cases, $password, $vhost);
is_deeply([ map { undelivered($_) } @faked ], [], 'everything is delivered');
my @one = grep { @{ $_->{fakes} } == 1 } @cases;
sub connections_logged
{
	return map { scalar(() = log_lines(qq{connected to RabbitMQ at "$_->{at}[0]/"}, $from)) } @one;
}
wait_until('the log to say so', sub { !grep { $_ == 0 } connections_logged() }, 15);
is_deeply([ connections_logged() ], [ map { 1 } @one ], 'and each is called connected again, once');
wait_until(
	'an alarm that stays to get into the log',
	sub { 3 <= (() = log_lines($flapping->port . '/??" ')) }, 15);
is(scalar(() = log_lines($flapping->port . '/??" ')), 3,
	'of an alarm that comes and goes the log has the beginning, and what stays');

#
# nothing is held up: the same failures, with time limits that nobody would wait for
#

sub within
{
	my ($limit, $what, $act) = @_;
	my $start = time();

	$act->();
	cmp_ok(time() - $start, '<', $limit, "$what in less than $limit s");
	return;
}

my @patience = map { "outbox.${_} = '1min'" } qw(connect_timeout heartbeat confirm_timeout);
$node->safe_psql('postgres', join '', map { settings($_, @patience) } @all, @real);
break_brokers(@cases);
set_alarm('memory', 1);
enqueue(1, $blocked);
within(5, 'fast shutdown', sub { $node->stop('fast'); });

my @up = map { @{ $_->{fakes} } } grep { !$_->{orders}{down} } @cases;
my %before = map { $_ => $_->connections } @up;
$node->start;
wait_until('workers to have tried again',
	sub { !grep { $_->connections == $before{$_} } @up }, 20);
for my $name (qw(other1 other2 other3))
{
	within(5, 'DROP DATABASE', sub { $node->safe_psql('postgres', "DROP DATABASE $name"); });
}
within(5, 'fast shutdown', sub { $node->stop('fast'); });

$_->behave for map { @{ $_->{fakes} } } @cases;
set_alarm('memory', 0);
$node->start;
wait_delivered(@all, @real);
is_deeply([ map { undelivered($_) } @faked ], [], 'everything is delivered');

$node->stop;
done_testing();
