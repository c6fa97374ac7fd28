"""What the core logs reaches `logging`."""

import logging
import subprocess
import sys
import time

import nats_bridge
from server import NatsServer

HEAD = """
import logging, os, sys, nats_bridge
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
"""

AT_EXIT = """
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
"""

FORKED = """
bridge = nats_bridge.connect(sys.argv[1])
child = os.fork()
if child == 0:
    with nats_bridge.connect(sys.argv[1]) as own:
        own.ensure_stream("CHILD", unbounded=True)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
bridge.ensure_stream("PARENT", unbounded=True)
"""

STUCK = """
import threading
class Stuck(logging.Handler):
    def createLock(self):
        self.lock = None  # `logging` itself waits for it at exit
    def emit(self, record):
        print("stuck", flush=True)
        threading.Event().wait()
logging.getLogger("nats_bridge").addHandler(Stuck())
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
"""

RAISES = """
class Raises(logging.Handler):
    def emit(self, record):
        raise ValueError(record.fields["object"])
logging.getLogger("nats_bridge").addHandler(Raises())
with nats_bridge.connect(sys.argv[1]) as bridge:
    bridge.ensure_stream("ONE", unbounded=True)
    bridge.ensure_stream("TWO", unbounded=True)
"""


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def of(records: list[logging.LogRecord], name: str, start: str) -> logging.LogRecord:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        for record in records:
            if record.name == name and record.getMessage().startswith(start):
                return record
        time.sleep(0.01)
    raise AssertionError(f"no record of {name} that starts with {start!r}: {records}")


def run(script: str, url: str) -> tuple[int, str, str]:
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", HEAD + script, url], capture_output=True, text=True, timeout=30
    )
    return process.returncode, process.stdout, process.stderr


def test_a_failed_delivery_is_logged_with_its_fields(server: NatsServer) -> None:
    kept = Kept()
    logger = logging.getLogger("nats_bridge")
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        with nats_bridge.connect(server.url) as bridge:
            bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
            before = time.time()
            bridge.publish("orders.new", b"100 %s")
            with bridge.consume("ORDERS", "billing", retry={"first_pause_ms": 1, "jitter": False}) as deliveries:
                next(deliveries).retry("100 %s of it failed")
                next(deliveries).ack()
            record = of(kept.records, "nats_bridge.consume", "a delivery failed and will be tried again")
    finally:
        logger.removeHandler(kept)
        logger.setLevel(logging.NOTSET)
    assert record.levelno == logging.INFO
    assert "stream=ORDERS" in record.getMessage()
    fields: object = vars(record)["fields"]
    assert isinstance(fields, dict)
    assert fields["consumer"] == "billing"
    assert before - 60 < record.created < time.time() + 60


def test_what_is_logged_before_the_exit_is_not_lost(server: NatsServer) -> None:
    code, out, errors = run(AT_EXIT, server.url)
    assert code == 0, errors
    assert "INFO nats_bridge.provision provisioning object=stream ORDERS" in out


def test_a_forked_child_has_a_log_of_its_own(server: NatsServer) -> None:
    code, out, errors = run(FORKED, server.url)
    assert code == 0, errors
    assert "object=stream CHILD" in out
    assert "object=stream PARENT" in out


def test_a_handler_that_is_stuck_does_not_hold_up_the_exit(server: NatsServer) -> None:
    code, out, errors = run(STUCK, server.url)
    assert code == 0, errors
    assert out.count("stuck") == 1


def test_what_a_handler_raises_is_shown_and_the_rest_is_logged(server: NatsServer) -> None:
    code, _, errors = run(RAISES, server.url)
    assert code == 0, errors
    assert "ValueError: stream ONE" in errors
    assert "ValueError: stream TWO" in errors


CLOSES = """
logging.getLogger("nats_bridge").setLevel(logging.DEBUG)
with nats_bridge.connect(sys.argv[1]) as bridge:
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
    consumer = bridge.consume("ORDERS", "billing")
    print(f"STATE {consumer.state}", flush=True)
try:
    consumer.next(10_000)
except nats_bridge.Closed:
    print("CLOSED")
"""


def test_a_connection_that_is_closed_on_purpose_is_no_error_of_its_consumers(server: NatsServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HEAD + CLOSES, server.url], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 0 and "STATE running" in ran.stdout and "CLOSED" in ran.stdout, ran
    assert not [line for line in ran.stdout.splitlines() if line.startswith(("ERROR", "WARNING"))], ran.stdout
