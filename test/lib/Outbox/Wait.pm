package Outbox::Wait;

# Waiting in tests: always for a condition with a name, always with an end.

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';
use Time::HiRes qw(time usleep);

our @EXPORT_OK = qw(wait_until);

# wait_until('what is expected', sub { ... }, seconds = 60, poll_ms = 50)
#
# Returns what the condition returned once that is true; dies when time is up.
sub wait_until
{
	my ($what, $condition, $timeout, $poll_ms) = @_;
	my $deadline = time() + ($timeout // 60);

	while (1)
	{
		my $result = $condition->();
		return $result if $result;
		croak "timed out waiting for: $what" if time() > $deadline;
		usleep(1000 * ($poll_ms // 50));
	}
}

1;
