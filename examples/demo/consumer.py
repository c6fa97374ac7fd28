"""Works on one RabbitMQ queue. An ordinary pika application: all it knows is an AMQP URL.

Manual acks after the work is done, a prefetch limit, a reconnect loop. SIGTERM: finishes what it holds, closes, ends.
"""

import argparse
import json
import signal
import time

import pika
import pika.exceptions

from ledger import Ledger

RECONNECT_DELAYS = (0.1, 0.2, 0.5, 1.0)  # seconds, the last one repeated


class Consumer:
    """One connection, one channel, one queue."""

    def __init__(self, args):
        self.args = args
        self.ledger = Ledger(args.ledger, args.name)
        self.connection = None
        self.channel = None
        self.consuming = False
        self.stopping = False

    def run(self):
        failures = 0
        while not self.stopping:
            try:
                self.consume()
                failures = 0
            except (pika.exceptions.AMQPError, OSError) as error:
                if self.consuming:
                    failures = 0
                    self.ledger.write("disconnected", why=repr(error))
                else:
                    self.ledger.write("connect_failed", why=repr(error))
            self.consuming = False
            if not self.stopping:
                time.sleep(RECONNECT_DELAYS[min(failures, len(RECONNECT_DELAYS) - 1)])
                failures += 1
        self.ledger.write("stopped")

    def consume(self):
        """Connects, declares what it needs, and works until the connection ends or it is asked to stop."""
        self.connection = pika.BlockingConnection(pika.URLParameters(self.args.url))
        self.channel = self.connection.channel()
        self.channel.queue_declare(self.args.queue, durable=True)
        if self.args.exchange:
            self.channel.exchange_declare(self.args.exchange, exchange_type="topic", durable=True)
            for pattern in self.args.bind:
                self.channel.queue_bind(self.args.queue, self.args.exchange, routing_key=pattern)
        self.channel.basic_qos(prefetch_count=self.args.prefetch)
        self.channel.add_on_cancel_callback(self.on_cancel)
        self.channel.basic_consume(self.args.queue, self.on_message)
        self.consuming = True
        self.ledger.write("connected")
        if not self.stopping:
            self.channel.start_consuming()
        self.connection.close()

    def on_message(self, channel, method, properties, body):
        order = json.loads(body)
        self.ledger.write(
            "delivered",
            queue=self.args.queue,
            id=order["id"],
            key=order["key"],
            seq=order["seq"],
            redelivered=method.redelivered,
            intact=self.is_intact(method, properties, order),
        )
        channel.basic_ack(method.delivery_tag)

    def is_intact(self, method, properties, order):
        """Whether everything arrived as it was published, headers included, and nothing was added."""
        return (
            method.routing_key == order["key"]
            and method.exchange == self.args.exchange
            and properties.message_id == order["id"]
            and order["id"].startswith(properties.app_id + "-")
            and properties.content_type == "application/json"
            and properties.delivery_mode == pika.DeliveryMode.Persistent.value
            and properties.headers == {"seq": order["seq"], "retry": False}
        )

    def on_cancel(self, _frame):
        self.ledger.write("cancelled")

    def stop(self, *_):
        self.stopping = True
        if self.connection is not None and self.connection.is_open and self.channel is not None:
            self.connection.add_callback_threadsafe(self.channel.stop_consuming)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the AMQP URL")
    parser.add_argument("--name", required=True, help="this application's name")
    parser.add_argument("--ledger", required=True, help="the file that records what this application did")
    parser.add_argument("--queue", required=True, help="the queue to work on")
    parser.add_argument("--exchange", default="", help="a topic exchange that the queue is bound to")
    parser.add_argument("--bind", action="append", default=[], help="a binding key; may be given more than once")
    parser.add_argument("--prefetch", type=int, default=100)
    consumer = Consumer(parser.parse_args())
    signal.signal(signal.SIGTERM, consumer.stop)
    signal.signal(signal.SIGINT, consumer.stop)
    consumer.run()


if __name__ == "__main__":
    main()
