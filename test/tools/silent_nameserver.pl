#!/usr/bin/perl
#
# silent_nameserver.pl ADDRESS: a nameserver that takes every question and never
# answers.  Says "ready" once it listens, and runs until it is killed.

use strict;
use warnings;

use IO::Socket::INET;

my $address = shift // '127.77.0.53';
my $socket = IO::Socket::INET->new(
	LocalAddr => $address,
	LocalPort => 53,
	Proto => 'udp') or die "silent_nameserver: $address: $@\n";

$| = 1;
print "ready\n";
1 while defined $socket->recv(my $question, 4096);
