#!/usr/bin/perl
#
# ./dev demo: the story of outbox in four acts.  Every number on the screen was
# measured in this run.

use strict;
use warnings FATAL => 'all';

use File::Temp;
use Time::HiRes qw(time usleep);

use Outbox::Playground;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $keep = grep { $_ eq '--keep' } @ARGV;
my ($bold, $dim, $plain) = -t STDOUT ? ("\e[1m", "\e[2m", "\e[0m") : ('', '', '');
my $failed = 0;

$| = 1;

sub act { my ($n, $title) = @_; print "\n${bold}$n. $title${plain}\n\n"; return; }
sub line { printf "   $_[0]\n", @_[ 1 .. $#_ ]; return; }

sub show_sql
{
	my ($sql) = @_;

	print "   ${dim}$_${plain}\n" for split /\n/, $sql;
	print "\n";
	return;
}

# A claim, and whether it turned out so.
sub expect
{
	my ($ok, $claim, @values) = @_;

	$failed++ unless $ok;
	line(($ok ? 'yes: ' : 'NO:  ') . $claim, @values);
	return;
}

sub ms { return sprintf '%.1f ms', 1000 * $_[0]; }

print "starting a private PostgreSQL and a private RabbitMQ ...\n";
my $playground = Outbox::Playground->new;
my $broker = $playground->broker;
my $consumer = $playground->make_shop;
$playground->wait_connected;
line('%s', $playground->sql(q{SELECT 'PostgreSQL ' || current_setting('server_version')}));
line('RabbitMQ %s', $broker->eval_erlang('rabbit_misc:version()') =~ /"([\d.]+)"/ ? $1 : '');

#
# the acts
#

# Run an order and its message in one transaction.  Returns its id and the
# moments, in seconds, at which COMMIT was sent and returned.
sub place_order_timed
{
	my ($item) = @_;
	my $out = $playground->sql(<<"END");
SELECT gen_random_uuid() AS id \\gset
BEGIN;
INSERT INTO orders (id, item) VALUES (:'id', '$item');
SELECT outbox.enqueue('shop', 'order.created', '{"item": "$item"}'::jsonb, message_id => :'id') \\g /dev/null
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS sent \\gset
COMMIT;
SELECT :'id', :sent, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
END
	my ($id, $sent, $returned) = split /\|/, $out;
	return ($id, $sent / 1e6, $returned / 1e6);
}

sub one_transaction
{
	place_order_timed('warm-up');    # catalog caches, the first round trip
	$playground->wait_drained;
	act(1, 'An order and its message, in one transaction');
	show_sql(<<'END');
BEGIN;
INSERT INTO orders (id, item) VALUES ('…', 'coffee');
SELECT outbox.enqueue('shop', 'order.created', '{"item": "coffee"}'::jsonb, message_id => '…');
COMMIT;
END
	my ($id, $sent, $returned) = place_order_timed('coffee');
	my $message = $consumer->wait_message($id, 20, 5);
	my $arrived = $message->{at} / 1e6;

	line('COMMIT took %s.', ms($returned - $sent));
	line('The consumer had the message %s after COMMIT was sent:', ms($arrived - $sent));
	line('%s  %s', $message->{routing_key}, $message->{body});
	return;
}

sub rollback_is_silent
{
	act(2, 'A ROLLBACK sends nothing');
	my $out = $playground->sql(<<'END');
BEGIN;
SELECT place_order('regret');
ROLLBACK;
END
	my ($rolled_back) = $out =~ /([0-9a-f-]{36})/;

	show_sql("BEGIN;\nSELECT place_order('regret');    -- inserts the order, enqueues the message\nROLLBACK;");
	my ($id) = place_order_timed('tea');
	$consumer->wait_message($id, 20, 5);
	$playground->wait_drained;
	expect(!$consumer->first($rolled_back),
		'the order that came after it arrived, the one rolled back did not');
	return;
}

sub broker_dies
{
	my $orders = 1000;
	my $script = join '', map { "SELECT place_order('order $_') \\g /dev/null\n" } 1 .. $orders;

	act(3, 'RabbitMQ dies, and the shop stays open');
	my $start = time();
	$playground->sql($script);
	my $with = time() - $start;
	$playground->wait_drained(60);
	my $before = $consumer->distinct;

	$broker->kill9;
	line('kill -9 of RabbitMQ.');
	$start = time();
	$playground->sql($script);
	my $without = time() - $start;
	line('%d orders, each its own COMMIT, took %s each; with RabbitMQ it was %s.',
		$orders, ms($without / $orders), ms($with / $orders));
	my ($pending, $error) = split /\|/,
	  $playground->sql(q{SELECT pending, coalesce(last_error, '-') FROM outbox.status});
	line('outbox.status: pending %d, last_error "%s".', $pending, $error);
	expect($pending == $orders, 'all %d wait in the database', $orders);
	expect($consumer->distinct == $before, 'nothing arrived meanwhile');

	line('RabbitMQ is started again ...');
	my $took = $broker->start;
	$start = time();
	my $arrived = eval { $consumer->wait_distinct($before + $orders, 60) };
	expect($arrived, 'all %d arrived, the last of them %s after RabbitMQ was back (its start took %.1f s)',
		$orders, ms(time() - $start), $took);
	return;
}

# Arrivals beyond the first of each message.
sub extra_copies
{
	my $arrivals = () = $consumer->received;

	return $arrivals - $consumer->distinct;
}

sub database_dies
{
	my $dir = File::Temp::tempdir(CLEANUP => 1, TMPDIR => 1);

	act(4, 'PostgreSQL is killed in mid-stream');
	open my $out, '>', "$dir/order.sql" or die "order.sql: $!";
	print $out "SELECT place_order('order');\n";
	close $out;
	my $before = $playground->sql('SELECT count(*) FROM orders');
	my $received = $consumer->distinct;
	my $copies = extra_copies();
	my $shoppers = Outbox::Process->start(
		name => 'pgbench',
		log => "$dir/pgbench.log",
		command => [
			'pgbench', '-n', '-c', 4, '-T', 60, '-f', "$dir/order.sql",
			$playground->psql_arguments
		]);
	wait_until('messages to flow', sub { $consumer->distinct > $received + 2000 }, 30);
	$playground->kill_postgres;
	$shoppers->stop;
	line('kill -9 of PostgreSQL while four shoppers were placing orders.');
	my $start = time();
	$playground->start_postgres;
	line('It is back after %.1f s, recovery included.', time() - $start);
	$playground->wait_connected(60);
	$playground->wait_drained(60);
	my $orders = $playground->sql('SELECT count(*) FROM orders');
	eval { $consumer->wait_distinct($orders, 30) };
	my $messages = $consumer->distinct;
	line('%d orders were committed before the kill.', $orders - $before);
	expect($orders == $messages, 'orders in the database: %d, different messages at the consumer: %d',
		$orders, $messages);
	line('%d messages came twice, each under its old message_id: their confirms were not yet recorded.',
		extra_copies() - $copies);
	return;
}

one_transaction();
rollback_is_silent();
broker_dies();
database_dies();

print "\n";
print $failed
  ? "${bold}Something did not turn out as promised; see above.${plain}\n"
  : "${bold}Every order has its message, and no message is without its order.${plain}\n";
if ($keep)
{
	print "\nThis is psql in the demo's database.  Everything is gone when you leave with \\q.\n\n";
	$playground->interactive_psql;
}
else
{
	print "\nTo try it yourself: ./dev shell opens psql in servers like these,\n",
	  "./dev demo --keep opens it in the demo itself when it is over.\n";
}
exit($failed ? 1 : 0);
