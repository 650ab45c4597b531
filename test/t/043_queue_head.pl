# Proves that what waits behind a message of its ordering key does not pass it when
# that message is refused again and again in the midst of other traffic: each refusal
# closes the channel (406), and everything in flight is sent again one at a time.
# Nothing of the key may get on the wire in that shuffle.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Broker;
use Outbox::Node;
use Outbox::Process;
use Outbox::Wait qw(wait_until);

my $broker = Outbox::Broker->new;
$broker->start;
$broker->amqp('declare-queue', 'orders', 'classic', 'durable');
# what is larger closes the channel, and is to blame for it itself
$broker->eval_erlang('application:set_env(rabbit, max_message_size, 5000)');
my $node = Outbox::Node->create(
	'main',
	broker => $broker,
	conf => <<'END');
outbox.retry_delay_min = '100ms'
outbox.retry_delay_max = '300ms'
outbox.max_attempts = 100000
END
my $consumer = $broker->start_consumer('orders');

$node->safe_psql('postgres', <<'END');
SELECT outbox.enqueue('', 'orders', 'head' || repeat('.', 10000), ordering_key => 'k');
SELECT outbox.enqueue('', 'orders', 'k' || i, ordering_key => 'k') FROM generate_series(1, 30) i;
END
$node->wait_for('the first of the key to be refused',
	q{SELECT count(*) = 31 FROM outbox.deferred WHERE ordering_key = 'k'});

# Other messages keep coming while it is tried some dozens of times.
my $traffic = Outbox::Process->start_code(
	name => 'traffic',
	code => sub {
		$node->psql('postgres',
			q{DO $$ BEGIN FOR i IN 1 .. 100000 LOOP PERFORM outbox.enqueue('', 'orders', 'other'::text); COMMIT; END LOOP; END $$});
	});
$node->wait_for('it to be refused thirty times',
	q{SELECT attempts >= 30 FROM outbox.deferred WHERE ordering_key = 'k' ORDER BY place LIMIT 1},
	timeout => 120);
my @early = grep { $_->{body} =~ /^k\d/ } $consumer->received;
is(scalar @early, 0, 'nothing of the key has arrived before it')
  or diag join ' ', map { $_->{body} } @early;

# New channels know of it; the next attempt closes this one.
$broker->eval_erlang('application:set_env(rabbit, max_message_size, 100000)');
wait_until('the queue of the key to be delivered',
	sub { scalar(grep { $_->{body} eq 'k30' } $consumer->received) }, 60);
my %seen;
is(join(' ', grep { !$seen{$_}++ } map { $_->{body} =~ s/\.+$//r } grep { $_->{body} =~ /^(k\d|head)/ } $consumer->received),
	join(' ', 'head', map { "k$_" } 1 .. 30),
	'when it is taken at last, the others follow in order');

$traffic->stop;
$consumer->stop;
$node->stop;
done_testing();
