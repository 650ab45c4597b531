# Proves that nothing is lost, invented, reordered within a key, or stuck, whatever
# is done to PostgreSQL, RabbitMQ and the network between them, at random and
# overlapping: a minute of ./dev chaos.  See Outbox/Chaos.pm.
#
# Runs alone: it measures.

use strict;
use warnings FATAL => 'all';

use Test::More;

use Outbox::Chaos;

my $seed = $ENV{OUTBOX_TEST_SEED} // int(rand(1_000_000));
diag "seed $seed (OUTBOX_TEST_SEED)";

my $chaos = Outbox::Chaos->new(
	seed => $seed,
	seconds => $ENV{OUTBOX_CHAOS_SECONDS} // 60,
	log => sub { note $_[0] })->run;
diag $_ for $chaos->table;
for my $check ($chaos->checks)
{
	my ($ok, $name, $against) = @$check;

	ok($ok, $name) or diag join "\n", Outbox::Chaos::Verdict::examples(@$against);
}

done_testing();
