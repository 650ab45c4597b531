package Outbox::Cluster;

# A private RabbitMQ cluster on this machine: nodes that can be killed, frozen and
# started again one by one.  Each node is an Outbox::Broker.

use strict;
use warnings FATAL => 'all';

use Carp;

use Outbox::Broker;
use Outbox::Wait qw(wait_until);

# Outbox::Cluster->new(nodes => 3, config => ..., schedulers => 1)
sub new
{
	my ($class, %args) = @_;
	my $count = $args{nodes} // 3;
	my @nodes;

	for my $name (map { "rabbit$_" } 1 .. $count)
	{
		my @config = $args{config} // ();

		push @config, "{cluster_nodes, {['rabbit1\@localhost', '$name\@localhost'], disc}}" if @nodes;
		push @nodes, Outbox::Broker->new(
			name => $name,
			config => join(",\n  ", @config),
			schedulers => $args{schedulers} // 1,
			@nodes ? (beside => $nodes[0]) : ());
	}
	return bless { nodes => \@nodes }, $class;
}

# $cluster->node(1): counted from 1
sub node { return $_[0]{nodes}[ $_[1] - 1 ]; }
sub nodes { return @{ $_[0]{nodes} }; }

# The first founds the cluster, and the others join it both at once.  Not before it is
# ready: until then it still converts its tables to what its feature flags ask for, and
# a node that copies one in between does not start.
sub start
{
	my ($self) = @_;
	my ($first, @others) = $self->nodes;

	$first->start;
	$_->launch for @others;
	$_->wait_ready for @others;
	$self->wait_members(scalar $self->nodes);
	return;
}

# Wait until every node that runs sees that many members running.
sub wait_members
{
	my ($self, $count, $timeout) = @_;

	for my $node (grep { $_->running } $self->nodes)
	{
		wait_until(
			$node->node . " to see $count running nodes",
			sub { $node->eval_erlang('length(rabbit_nodes:all_running())') =~ /^\{ok,\s*$count\}/ },
			$timeout // 60,
			50);
	}
	return;
}

# A quorum queue with a member on each node and its leader on node number $leader.
sub declare_quorum_queue
{
	my ($self, $queue, $leader) = @_;
	my $node = $self->node($leader);
	my $refused;

	# a node that has just started may refuse at first
	eval {
		wait_until(
			"quorum queue $queue",
			sub {
				eval {
					$node->amqp('declare-queue', $queue, 'quorum',
						'x-queue-leader-locator=client-local');
					1;
				} or !($refused = $@);
			},
			20);
	} or croak $refused // $@;
	croak "the leader of queue $queue is on " . $self->leader($queue)
	  if $self->leader($queue) ne $node->node;
	return;
}

# The node that leads a quorum queue, as node number 1 sees it.
sub leader
{
	my ($self, $queue) = @_;
	my $answer = $self->node(1)->eval_erlang(
		"begin {ok, Q} = rabbit_amqqueue:lookup({resource, <<\"/\">>, queue, <<\"$queue\">>}), "
		  . 'element(2, amqqueue:get_pid(Q)) end');

	$answer =~ /^\{ok,\s*'?([^'}]+)'?\}/ or croak "leader of $queue: $answer";
	return $1;
}

1;
