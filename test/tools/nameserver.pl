#!/usr/bin/perl
#
# nameserver.pl ADDRESS: a nameserver that takes every question and answers only those for
# names that begin with "slow", with 127.0.0.1, late.  Says "ready" once it listens, and
# runs until it is killed.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time);

use constant {
	LATE_S => 0.7,
	HEADER => 12,
	TYPE_A => 1,
};

my $address = shift // '127.77.0.53';
my $socket = IO::Socket::INET->new(
	LocalAddr => $address,
	LocalPort => 53,
	Proto => 'udp') or die "nameserver: $address: $@\n";
my $readable = IO::Select->new($socket);
my @answers;    # [ when, text, to whom ], oldest first

# The question with the flags and the record of an answer: an IPv4 address, else nothing.
sub answer
{
	my ($question) = @_;
	my ($id) = unpack 'n', $question;
	my ($type) = unpack 'n', substr $question, index($question, "\0", HEADER) + 1, 2;
	my $asked = substr $question, HEADER, index($question, "\0", HEADER) + 5 - HEADER;
	my $record = $type == TYPE_A ? pack 'n n n N n C4', 0xc000 + HEADER, TYPE_A, 1, 0, 4, 127, 0, 0, 1 : '';

	return pack('n n n n n n', $id, 0x8180, 1, $record ne '' ? 1 : 0, 0, 0) . $asked . $record;
}

$| = 1;
print "ready\n";
while (1)
{
	my $wait = @answers ? $answers[0][0] - time() : undef;

	if ($readable->can_read(defined $wait && $wait < 0 ? 0 : $wait))
	{
		my $from = $socket->recv(my $question, 4096);

		push @answers, [ time() + LATE_S, answer($question), $from ]
		  if defined $from && $question =~ /^.{@{[HEADER]}}.slow/s;
	}
	while (@answers && $answers[0][0] <= time())
	{
		my (undef, $text, $to) = @{ shift @answers };

		$socket->send($text, 0, $to);
	}
}
