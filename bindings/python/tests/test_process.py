"""What happens at the edges of a process: fork, Ctrl-C, exit. Each runs in an interpreter of its own."""

import signal
import subprocess
import sys

import pytest

from server import NatsServer

FORK = """
import os, sys, nats_bridge
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
child = os.fork()
if child == 0:
    try:
        bridge.publish("orders.new", b"from the child")
    except nats_bridge.Forked as error:
        assert (error.code, error.landed) == ("forked", "no")
        del bridge
        with nats_bridge.connect(sys.argv[1]) as own:
            own.publish("orders.new", b"from the child", id="child")
        os._exit(0)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert bridge.publish("orders.new", b"again", id="child").duplicate
assert bridge.publish("orders.new", b"from the parent").sequence == 2
"""

CYCLES = """
import asyncio, os, sys, nats_bridge
from nats_bridge import aio
def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else len(os.listdir("/dev/fd"))
async def one():
    async with aio.connect(sys.argv[1]) as bridge:
        await bridge.publish("orders.new", b"x")
def both():
    with nats_bridge.connect(sys.argv[1]) as bridge:
        bridge.ensure_stream("ORDERS", unbounded=True)
        with bridge.consume("ORDERS", "billing") as deliveries:
            deliveries.next(0)
    asyncio.run(one())
for _ in range(10):
    both()
before = open_files()
for _ in range(100):
    both()
assert open_files() <= before + 5, (before, open_files())
"""

INTERRUPT = """
import sys, nats_bridge
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
print("waits", flush=True)
sys.stdin.readline()
print("publishes", flush=True)
bridge.publish("orders.new", b"the server is gone")
"""

INTERRUPT_NEXT = """
import sys, nats_bridge
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
with bridge.consume("ORDERS", "billing") as deliveries:
    print("waits", flush=True)
    for delivery in deliveries:
        pass
"""

INTERRUPT_AIO = """
import asyncio, sys
from nats_bridge import aio
async def main():
    async with aio.connect(sys.argv[1]) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        async with bridge.consume("ORDERS", "billing") as deliveries:
            print("waits", flush=True)
            async for delivery in deliveries:
                pass
asyncio.run(main())
"""

EXIT = """
import asyncio, sys, threading, nats_bridge, nats_bridge.aio
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
bridge.publish("orders.new", b"not closed")
deliveries = bridge.consume("ORDERS", "billing")
delivery = deliveries.next(5_000)
threading.Thread(target=lambda: deliveries.next(), daemon=True).start()
async def main():
    other = await nats_bridge.aio.connect(sys.argv[1])
    asyncio.ensure_future(other.publish("orders.new", b"not awaited"))
    await asyncio.sleep(0)
asyncio.run(main())
"""


def run(script: str, url: str) -> "subprocess.Popen[str]":
    # A shell starts what runs in the background with SIGINT ignored, and Python keeps it so: Ctrl-C is made to arrive.
    listening = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", listening + script, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_many_connections_leave_no_descriptor_behind(server: NatsServer) -> None:
    process = run(CYCLES, server.url)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_a_forked_child_is_refused_and_may_connect_anew(server: NatsServer) -> None:
    process = run(FORK, server.url)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def test_ctrl_c_ends_a_wait(server: NatsServer) -> None:
    process = run(INTERRUPT, server.url)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    server.stop()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "publishes\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("script", [INTERRUPT_NEXT, INTERRUPT_AIO], ids=["threads", "asyncio"])
def test_ctrl_c_ends_the_wait_for_a_delivery(server: NatsServer, script: str) -> None:
    process = run(script, server.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


def test_a_process_that_closes_nothing_still_ends(server: NatsServer) -> None:
    process = run(EXIT, server.url)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
