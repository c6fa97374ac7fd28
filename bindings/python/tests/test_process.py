"""What happens at the edges of a process: fork, Ctrl-C, exit. Each runs in an interpreter of its own."""

import signal
import subprocess
import sys

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

INTERRUPT = """
import sys, nats_bridge
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
print("waits", flush=True)
sys.stdin.readline()
print("publishes", flush=True)
bridge.publish("orders.new", b"the server is gone")
"""

EXIT = """
import asyncio, sys, nats_bridge, nats_bridge.aio
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True)
bridge.publish("orders.new", b"not closed")
async def main():
    other = await nats_bridge.aio.connect(sys.argv[1])
    asyncio.ensure_future(other.publish("nobody.listens", b"not awaited"))
    await asyncio.sleep(0)
asyncio.run(main())
"""


def run(script: str, url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", script, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def test_a_process_that_closes_nothing_still_ends(server: NatsServer) -> None:
    process = run(EXIT, server.url)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
