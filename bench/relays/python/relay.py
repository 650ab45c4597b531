"""The relay by hand in Python: psycopg and pika, a batch in a transaction.

pika's BlockingConnection with confirm_delivery() waits for each message's confirm
before it sends the next, a round trip per message.  So this is pika's asynchronous
SelectConnection: a batch of --window rows is published without waiting, acks are
counted as they come, and with the last of them one DELETE removes the batch.  The
database is asked in between, from the same thread; that takes milliseconds.  A message
that no queue took, or that the broker refused, stays in the table.
"""

import argparse
import signal
import sys
import time

import pika
import pika.exceptions
import psycopg

FALLBACK_POLL_MS = 5000  # with --listen, should a notification be lost
RESTART_S = 1

# A relay's commits need not wait for the disk: what a crash makes them forget is sent
# once more, which at-least-once allows.  A plan made while the table was empty would
# do harm once there is a backlog, and planning is cheap beside a batch.
SETTINGS = '-c synchronous_commit=off -c plan_cache_mode=force_custom_plan'

TAKE = """SELECT id, message_id::text, routing_key, payload FROM python.outbox
    ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"""
DONE = 'DELETE FROM python.outbox WHERE id = ANY(%s)'


class Relay:
    def __init__(self, options):
        self.window = options.window
        self.poll_s = (FALLBACK_POLL_MS if options.listen else options.poll_ms) / 1000
        self.stopping = False
        self.failure = None
        self.batch = None  # what is being published: message_id => id
        self.last_tag = 0  # its last delivery tag
        self.acked_up_to = 0
        self.acked = set()  # beyond that
        self.timer = None
        self.notified = False

        self.db = psycopg.connect(options.pg, options=SETTINGS, autocommit=True, prepare_threshold=0)
        self.cursor = self.db.cursor(binary=True)
        self.broker = pika.SelectConnection(
            pika.URLParameters(options.amqp),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.on_channel),
            on_open_error_callback=self.on_closed,
            on_close_callback=self.on_closed)
        self.loop = self.broker.ioloop
        if options.listen:
            self.cursor.execute('LISTEN python_outbox')
            self.db.add_notify_handler(lambda notify: self.wake())
            self.loop.add_handler(self.db.fileno(), self.on_db_readable, self.loop.READ)

    def run(self):
        try:
            self.loop.start()
        finally:
            self.db.close()
        if self.failure and not self.stopping:
            raise self.failure

    def stop(self):
        """From a signal handler."""
        self.stopping = True
        self.loop.add_callback_threadsafe(self.wake)

    def on_channel(self, channel):
        self.channel = channel
        channel.add_on_return_callback(self.on_return)
        channel.add_on_close_callback(self.on_closed)
        channel.confirm_delivery(self.on_confirm, callback=lambda ok: self.on_ready())

    def on_ready(self):
        print('ready', flush=True)
        self.next_batch()

    def on_closed(self, connection, reason):
        self.failure = self.failure or reason
        self.loop.stop()

    def on_db_readable(self, fd, events):
        self.db.pgconn.consume_input()
        while self.db.pgconn.notifies():
            self.wake()

    def wake(self):
        """There may be something to do: no more waiting for it."""
        self.notified = True
        if self.timer:
            self.loop.remove_timeout(self.timer)
            self.next_batch()

    def wait(self):
        self.timer = self.loop.call_later(0 if self.notified else self.poll_s, self.next_batch)

    def next_batch(self):
        self.timer = None
        if self.stopping:
            self.broker.close()
            return
        self.notified = False
        self.cursor.execute('BEGIN')
        rows = self.cursor.execute(TAKE, (self.window,)).fetchall()
        if not rows:
            self.cursor.execute('COMMIT')
            self.wait()
            return
        self.batch = {message_id: id for id, message_id, _, _ in rows}
        self.last_tag += len(rows)
        for _, message_id, routing_key, payload in rows:
            self.channel.basic_publish(
                '', routing_key, payload,
                pika.BasicProperties(
                    message_id=message_id,
                    content_type='application/octet-stream',
                    delivery_mode=2),
                mandatory=True)

    def on_return(self, channel, method, properties, body):
        """No queue; its ack follows."""
        del self.batch[properties.message_id]

    def on_confirm(self, frame):
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise RuntimeError('the broker refuses a message')  # and the batch is taken again
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            self.acked_up_to = max(self.acked_up_to, tag)
        else:
            self.acked.add(tag)
        while self.acked_up_to + 1 in self.acked:
            self.acked_up_to += 1
            self.acked.remove(self.acked_up_to)
        if self.acked_up_to == self.last_tag:
            self.batch_confirmed()

    def batch_confirmed(self):
        if self.batch:
            self.cursor.execute(DONE, (list(self.batch.values()),))
        self.cursor.execute('COMMIT')
        if self.batch:
            self.next_batch()
        else:
            self.wait()  # all were returned


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--pg', required=True)
    parser.add_argument('--amqp', required=True)
    parser.add_argument('--window', type=int, default=1000)
    parser.add_argument('--poll-ms', type=int, default=100)
    parser.add_argument('--listen', action='store_true')
    options = parser.parse_args()

    relay = None
    stopping = False

    def stop(*_):
        nonlocal stopping
        stopping = True
        if relay:
            relay.stop()

    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        try:
            relay = Relay(options)
            relay.run()
        except (pika.exceptions.AMQPError, psycopg.Error, RuntimeError) as error:
            print(repr(error), file=sys.stderr)
            time.sleep(RESTART_S)


main()
