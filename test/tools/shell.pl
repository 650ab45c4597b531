#!/usr/bin/perl
#
# ./dev shell: psql in a private database with outbox, next to a private RabbitMQ.

use strict;
use warnings FATAL => 'all';

use Outbox::Playground;

print "starting PostgreSQL and RabbitMQ ...\n";
my $playground = Outbox::Playground->new;
$playground->make_shop;
$playground->wait_connected;
print <<'END';

Database "shop" has outbox, a table orders, and a consumer at RabbitMQ that writes
down every message of the exchange "shop" with a routing key order.*.  Try:

  SELECT outbox.enqueue('shop', 'order.created', '{"item": "coffee"}'::jsonb);
  BEGIN; SELECT place_order('tea'); ROLLBACK;
  \! tail -n 5 $RECEIVED
  SELECT * FROM outbox.status \gx
  \! amqptool

Everything is gone when you leave with \q.

END
$playground->interactive_psql;
