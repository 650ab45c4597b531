# Proves that what happens on one of several connections costs the others nothing: a
# channel that the broker closes unsends what is in flight on it alone, and a connection
# that is read slowly holds up no other.  The broker is a fake, which answers when it is
# told to.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::FakeBroker;
use Outbox::Node;
use Outbox::Wait qw(wait_until);

my $fake = Outbox::FakeBroker->new;
my $node = Outbox::Node->create(
	'main',
	uri => $fake->uri,
	conf => <<'END');
outbox.connections = 2
outbox.in_flight_bytes = '256MB'
outbox.retry_delay_min = '1h'
outbox.retry_delay_max = '1h'
END
$node->wait_connected;

# number of the connection => its messages, as often as they came, of an exchange
sub arrivals
{
	my ($exchange) = @_;
	my %by_connection;

	push @{ $by_connection{ $_->[4] } }, $_->[2] for grep { $_->[0] eq $exchange } $fake->received;
	return \%by_connection;
}

sub count { return scalar map { @$_ } values %{ $_[0] }; }

#
# one channel is closed
#
my @missing = (404, "NOT_FOUND - no exchange 'ghost' in vhost '/'");

$fake->behave(answer => 'later', by_exchange => { ghost => \@missing });
my $connected = $node->status('connected_since');
$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue(CASE i WHEN 41 THEN 'ghost' ELSE 'orders' END, '', 'order'::text)
FROM generate_series(1, 41) i
END
wait_until('the messages to be sent',
	sub { count(arrivals('ghost')) == 1 && count(arrivals('orders')) >= 40 }, 20);
my $sent = arrivals('orders');
my ($closed) = keys %{ arrivals('ghost') };
my ($other) = grep { $_ != $closed } keys %$sent;
is(count($sent), 40, 'all are sent');
cmp_ok(scalar @{ $sent->{$other} }, '>=', 15, 'over both connections');

# Of those on the other the fake has answered none.
$node->wait_for('what was on the closed channel to be unsent',
	"SELECT in_flight = @{[ scalar @{ $sent->{$other} } ]} FROM outbox.status");
$fake->behave(by_exchange => { ghost => \@missing });
$node->wait_for('the ghost to be set aside, and nothing else',
	'SELECT pending = 0 AND in_flight = 0 AND deferred = 1 AND unavailable = 1 FROM outbox.status');

my $all = arrivals('orders');
my %times;
$times{$_}++ for map { @$_ } values %$all;
is(scalar(grep { $times{$_} == 1 } @{ $sent->{$other} }), scalar @{ $sent->{$other} },
	'what was on the other channel is sent once');
is(scalar(grep { $times{$_} == 2 } @{ $sent->{$closed} }), scalar @{ $sent->{$closed} },
	'what was on the closed one is sent again');
is($node->status('connected_since'), $connected, 'both connections stay');

#
# one connection is read slowly
#
$fake->behave(deaf => $closed, by_exchange => { ghost => \@missing });
$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('large', '', repeat('x', 100000)) FROM generate_series(1, 400)
END
# More than sockets and the output may hold: with the other waiting for it, that would be all.
eval { wait_until('the messages', sub { count(arrivals('large')) >= 300 }, 20) } or diag $@;
my $large = arrivals('large');
cmp_ok(count($large), '>=', 300, 'one connection is not read: the other takes what there is');
is_deeply([ keys %$large ], [$other], 'which is not read');
$fake->behave(by_exchange => { ghost => \@missing });
$node->wait_for('all to be delivered', 'SELECT pending = 0 AND in_flight = 0 FROM outbox.status');
is(count(arrivals('large')), 400, 'each once');
is($node->status('connected_since'), $connected, 'both connections stay');

$node->stop;
$fake->stop;
done_testing();
