"""Publishes orders to RabbitMQ. An ordinary pika application: all it knows is an AMQP URL.

Persistent messages, publisher confirms with a window, a reconnect loop that sends again, with the same id, what was not
confirmed. SIGTERM: publishes nothing new, waits for the last confirm, closes, ends.
"""

import argparse
import collections
import itertools
import json
import random
import signal
import time

import pika

from ledger import Ledger

TICK = 0.01  # seconds between bursts
WINDOW = 500  # messages that may be unconfirmed at once
RECONNECT_DELAYS = (0.1, 0.2, 0.5, 1.0)  # seconds, the last one repeated


class Producer:
    """One connection, one channel, and what is on its way."""

    def __init__(self, args):
        self.args = args
        self.ledger = Ledger(args.ledger, args.name)
        self.random = random.Random(f"{args.seed}/{args.name}")
        self.next_seq = collections.Counter()
        self.count = 0
        self.unsent = collections.deque()  # to be sent again, oldest first
        self.unconfirmed = collections.OrderedDict()  # delivery tag -> message
        self.connection = None
        self.channel = None
        self.last_tag = 0
        self.ready = False
        self.stopping = False
        self.failures = 0
        self.began = None
        self.allowance = 0.0

    def run(self):
        while not self.stopping or self.unsent or self.unconfirmed:
            self.connection = pika.SelectConnection(
                pika.URLParameters(self.args.url),
                on_open_callback=self.on_open,
                on_open_error_callback=self.on_open_error,
                on_close_callback=self.on_close,
            )
            self.connection.ioloop.start()
            if self.stopping and not self.unsent and not self.unconfirmed:
                break
            time.sleep(RECONNECT_DELAYS[min(self.failures, len(RECONNECT_DELAYS) - 1)])
            self.failures += 1
        self.ledger.write("stopped")

    # -- connection -------------------------------------------------------------------------------------------------

    def on_open(self, connection):
        connection.channel(on_open_callback=self.on_channel_open)

    def on_open_error(self, _connection, error):
        self.ledger.write("connect_failed", why=repr(error))
        self.connection.ioloop.stop()

    def on_close(self, _connection, reason):
        was_ready, self.ready, self.channel = self.ready, False, None
        if was_ready and not (self.stopping and not self.unconfirmed and not self.unsent):
            self.ledger.write("disconnected", why=repr(reason))
        # Nobody knows whether these were stored: they are sent again with the same ids, before anything new.
        self.unsent.extendleft(reversed(self.unconfirmed.values()))
        self.unconfirmed.clear()
        self.connection.ioloop.stop()

    def on_channel_open(self, channel):
        self.channel = channel
        channel.add_on_close_callback(self.on_channel_close)
        channel.add_on_return_callback(self.on_return)
        if self.args.exchange:
            channel.exchange_declare(
                self.args.exchange, exchange_type="topic", durable=True, callback=self.on_declared
            )
        else:
            channel.queue_declare(self.args.queue, durable=True, callback=self.on_declared)

    def on_channel_close(self, _channel, reason):
        if self.connection.is_open and self.ready:
            self.ready = False
            if not (self.stopping and not self.unconfirmed and not self.unsent):
                self.ledger.write("channel_closed", why=repr(reason))
            self.connection.close()

    def on_declared(self, _frame):
        self.last_tag = 0
        self.channel.confirm_delivery(self.on_confirm, callback=self.on_confirms_on)

    def on_confirms_on(self, _frame):
        self.ready = True
        self.failures = 0
        self.ledger.write("connected")
        self.began = time.monotonic()
        self.allowance = 0.0
        self.tick()

    # -- publishing -------------------------------------------------------------------------------------------------

    def tick(self):
        """Publishes what the rate and the window allow, and comes back."""
        if not self.ready:
            return
        if self.stopping and not self.unsent and not self.unconfirmed:
            self.connection.close()
            return
        self.allowance = min(self.allowance + self.args.rate * TICK, self.args.rate * 0.1 + 1)
        while self.unsent and len(self.unconfirmed) < WINDOW:
            self.publish(self.unsent.popleft())
        while not self.stopping and self.allowance >= 1 and len(self.unconfirmed) < WINDOW:
            self.allowance -= 1
            self.publish(self.new_message())
        self.connection.ioloop.call_later(TICK, self.tick)

    def new_message(self):
        self.count += 1
        key = self.random.choice(self.args.key)
        self.next_seq[key] += 1
        return {
            "id": f"{self.args.name}-{self.count}",
            "key": key,
            "seq": self.next_seq[key],
            "attempt": 0,
            "note": "x" * self.random.randrange(400),
        }

    def publish(self, message):
        message["attempt"] += 1
        self.ledger.write(
            "published",
            id=message["id"],
            exchange=self.args.exchange,
            key=message["key"],
            seq=message["seq"],
            attempt=message["attempt"],
        )
        body = {name: message[name] for name in ("id", "key", "seq", "note")}
        self.last_tag += 1
        self.unconfirmed[self.last_tag] = message
        self.channel.basic_publish(
            exchange=self.args.exchange,
            routing_key=message["key"],
            body=json.dumps(body).encode(),
            properties=pika.BasicProperties(
                delivery_mode=pika.DeliveryMode.Persistent.value,
                content_type="application/json",
                message_id=message["id"],
                app_id=self.args.name,
                headers={"seq": message["seq"], "retry": False},
            ),
            mandatory=True,
        )

    def on_confirm(self, frame):
        method = frame.method
        if method.multiple:
            tags = list(itertools.takewhile(lambda tag: tag <= method.delivery_tag, self.unconfirmed))
        else:
            tags = [method.delivery_tag]
        messages = [self.unconfirmed.pop(tag) for tag in tags]
        if isinstance(method, pika.spec.Basic.Ack):
            self.ledger.write_all("confirmed", [{"id": message["id"]} for message in messages])
        else:
            self.ledger.write_all("nacked", [{"id": message["id"]} for message in messages])
            self.unsent.extend(messages)

    def on_return(self, _channel, method, properties, _body):
        self.ledger.write("returned", id=properties.message_id, why=method.reply_text)

    def stop(self, *_):
        self.stopping = True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the AMQP URL")
    parser.add_argument("--name", required=True, help="this application's name; its messages' ids begin with it")
    parser.add_argument("--ledger", required=True, help="the file that records what this application did")
    parser.add_argument("--exchange", default="", help="a topic exchange; without it, the default exchange")
    parser.add_argument("--queue", help="the queue to declare for the default exchange")
    parser.add_argument("--key", action="append", required=True, help="a routing key; may be given more than once")
    parser.add_argument("--rate", type=float, default=200, help="messages a second")
    parser.add_argument("--seed", type=int, default=1)
    producer = Producer(parser.parse_args())
    signal.signal(signal.SIGTERM, producer.stop)
    signal.signal(signal.SIGINT, producer.stop)
    producer.run()


if __name__ == "__main__":
    main()
