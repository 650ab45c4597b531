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

	# The first founds the cluster, and the others join it as soon as it has tables;
	# were they told of each other as well, they would wait for one another.
	for my $name (map { "rabbit$_" } 1 .. $count)
	{
		my @config = $args{config} // ();

		push @config, "{cluster_nodes, {['rabbit1\@localhost', '$name\@localhost'], disc}}",
		  '{cluster_formation, [{discovery_retry_limit, 300}, {discovery_retry_interval, 100}]}'
		  if @nodes;
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

# All at once.
sub start
{
	my ($self) = @_;

	$_->launch for $self->nodes;
	$_->wait_ready for $self->nodes;
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

	$node->amqp('declare-queue', $queue, 'quorum', 'x-queue-leader-locator=client-local');
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
