package Outbox::Sets;

# What committed against what arrived.
#
# The truth is the table `orders` after recovery: each of its rows was inserted in
# the same transaction that enqueued the message whose message_id is the row's id.

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use Test::More;

our @EXPORT_OK = qw(create_orders committed_orders compare_sets sets_ok busiest_stretch);

# Table and function that the tests of sets work with.  place_order() is one order
# and its message; `ordered` tells whether the writer's messages must arrive in
# the order of seq.
sub create_orders
{
	my ($node, $dbname, $queue) = @_;

	$queue //= 'orders';
	$node->safe_psql($dbname // 'postgres', <<"END");
CREATE SEQUENCE order_seq;
CREATE TABLE orders (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	writer integer NOT NULL,
	seq bigint NOT NULL DEFAULT nextval('order_seq'),
	ordered boolean NOT NULL,
	placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION place_order(writer integer, ordered boolean DEFAULT true) RETURNS uuid
LANGUAGE sql AS \$\$
	WITH placed AS (
		INSERT INTO orders (writer, ordered) VALUES (writer, ordered) RETURNING *)
	SELECT outbox.enqueue('', '$queue',
		jsonb_build_object('writer', placed.writer, 'seq', placed.seq),
		message_id => placed.id)
	FROM placed;
\$\$;
END
	return;
}

sub committed_orders
{
	my ($node, $dbname) = @_;
	my @orders;

	for my $line (
		split /\n/,
		$node->safe_psql(
			$dbname // 'postgres', 'SELECT id, writer, seq, ordered FROM orders'))
	{
		my %order;
		@order{qw(id writer seq ordered)} = split /\|/, $line;
		push @orders, \%order;
	}
	return @orders;
}

# compare_sets(\@committed, \@received): hash of lists
#
#   lost         committed, never arrived
#   invented     arrived, not committed
#   duplicates   arrivals beyond the first that are not a redelivery by the broker
#   redelivered  arrivals beyond the first that are marked redelivered
#   disorder     arrived before a message that its writer committed earlier;
#                first arrivals only
sub compare_sets
{
	my ($committed, $received) = @_;
	my %committed = map { $_->{id} => $_ } @$committed;
	my (%seen, %last);
	my %result = map { $_ => [] } qw(lost invented duplicates redelivered disorder);

	for my $message (@$received)
	{
		my $id = $message->{message_id};
		my $order = $committed{$id};

		if ($seen{$id}++)
		{
			push @{ $result{ $message->{redelivered} ? 'redelivered' : 'duplicates' } },
			  $message;
			next;
		}
		if (!$order)
		{
			push @{ $result{invented} }, $message;
			next;
		}
		next unless $order->{ordered} eq 't';
		my $last = $last{ $order->{writer} };
		if ($last && $last->{seq} > $order->{seq})
		{
			push @{ $result{disorder} }, { %$message, after => $last->{seq} };
		}
		else
		{
			$last{ $order->{writer} } = $order;
		}
	}
	$result{lost} = [ grep { !$seen{ $_->{id} } } @$committed ];
	return %result;
}

# busiest_stretch($length, @times): the most of these ascending times that lie
# within one stretch of that length.
sub busiest_stretch
{
	my ($length, @times) = @_;
	my ($most, $first) = (0, 0);

	for my $last (0 .. $#times)
	{
		$first++ while $times[$last] - $times[$first] > $length;
		$most = $last - $first + 1 if $last - $first + 1 > $most;
	}
	return $most;
}

sub _show
{
	my ($what, $list) = @_;

	diag sprintf('%d %s, the first of them:', scalar @$list, $what);
	for my $item (grep { defined } @{$list}[ 0 .. 4 ])
	{
		diag join ' ', '  ', map { "$_=" . ($item->{$_} // '') } sort keys %$item;
	}
	return;
}

# sets_ok(\@committed, \@received, 'name', duplicates => N)
#
# Five tests.  N is the number of duplicates that is allowed, 0 unless told.
sub sets_ok
{
	my ($committed, $received, $name, %args) = @_;
	my %result = compare_sets($committed, $received);
	my $allowed = $args{duplicates} // 0;
	my $duplicates = @{ $result{duplicates} };

	local $Test::Builder::Level = $Test::Builder::Level + 1;

	cmp_ok(scalar @$committed, '>', 0, "$name: something was committed");
	note sprintf '%s: %d committed, %d received, %d duplicates, %d redelivered',
	  $name, scalar @$committed, scalar @$received, $duplicates,
	  scalar @{ $result{redelivered} };
	for my $check (
		[ lost => 'nothing lost' ],
		[ invented => 'nothing arrived that did not commit' ],
		[ disorder => "each writer's messages in order" ])
	{
		my ($key, $what) = @$check;
		ok(!@{ $result{$key} }, "$name: $what") or _show($key, $result{$key});
	}
	ok( $duplicates <= $allowed,
		$allowed
		? "$name: duplicates within bounds ($duplicates of at most $allowed)"
		: "$name: each once")
	  or _show('duplicates', $result{duplicates});
	return %result;
}

1;
