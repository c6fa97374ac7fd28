"""A server that is killed, or hangs: every call ends with a typed error, and the process ends with its script."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server import NatsServer

SCRIPT = """
import os, signal, sys, nats_bridge
from nats_bridge import Error
url, server, how, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
bridge = nats_bridge.connect(url, request_timeout_ms=1_000, publish={"deadline_ms": 1_500})
bridge.ensure_stream("ORDERS", unbounded=True)
for n in range(3):
    bridge.publish("orders.new", b"%d" % n)
consumer = bridge.consume("ORDERS", "billing")
held = consumer.next(10_000)
letters = bridge.dead_letters("ORDERS_DLQ")
ledger = bridge.ledger("LEDGER", keep_ms=60_000, lease_ms=60_000)
check = bridge.health_check(streams=["ORDERS"])
outbox = nats_bridge.open_outbox(path)
outbox.start(bridge)
listener = nats_bridge.AmqpListener(url).start()
os.kill(server, how)
assert not bridge.stats().closed
assert not check.look().ready
outbox.put("orders.new", b"kept")
listener.stop()
for name, call, codes in [
    ("publish", lambda: bridge.publish("orders.new", b"x"), ["timeout"]),
    ("ensure_stream", lambda: bridge.ensure_stream("OTHER", unbounded=True), ["timeout", "unreachable"]),
    ("consume", lambda: bridge.consume("ORDERS", "other"), ["timeout", "unreachable"]),
    ("dead_letters", lambda: bridge.dead_letters("ORDERS_DLQ"), ["timeout", "unreachable"]),
    ("count", lambda: letters.count(), ["timeout", "unreachable"]),
    ("ledger", lambda: ledger.begin("o-1"), ["timeout", "unreachable"]),
    ("drain", lambda: consumer.drain(500), ["timeout"]),
    ("ack", lambda: held.ack(confirmed=True), ["timeout"]),
    ("outbox", lambda: outbox.drain(500), ["timeout"]),
    ("close outbox", lambda: outbox.close(500), ["timeout"]),
]:
    try:
        call()
    except Error as error:
        assert error.code in codes, (name, error)
    else:
        raise AssertionError(name)
(outcome,) = bridge.publish_many([("orders.new", b"x")])
assert (outcome.code, outcome.landed) == ("timeout", "unknown")
assert consumer.next(10) is None
bridge.close(1_000)
try:
    bridge.publish("orders.new", b"x")
except nats_bridge.Closed as error:
    assert error.landed == "no"
print("through")
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_every_call_ends_and_so_does_the_process(server: NatsServer, how: signal.Signals, tmp_path: Path) -> None:
    given = [server.url, str(server.pid), str(int(how)), str(tmp_path / "outbox")]
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *given], capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stdout) == (0, "through\n"), ran.stderr
