"""pika, unmodified, on the AMQP listener inside the process."""

# pika has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import subprocess
import sys
import threading

import pika
import pika.exceptions
import pytest

import nats_bridge
from nats_bridge import AmqpListener, aio
from server import NatsServer, eventually


def publish(url: str, *bodies: bytes) -> None:
    """Publishes to the durable queue ``orders`` with confirms."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("orders", durable=True)
    for body in bodies:
        channel.basic_publish("", "orders", body, mandatory=True)
    connection.close()


def take(url: str, count: int) -> list[bytes]:
    """Consumes ``count`` messages of ``orders`` and acks them."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=10)
    taken: list[bytes] = []
    for method, _, body in channel.consume("orders", inactivity_timeout=15):
        assert method is not None and body is not None, f"only {taken} came"
        taken.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(taken) == count:
            break
    channel.cancel()
    connection.close()
    return taken


def test_pika_publishes_and_consumes_in_the_same_process_and_thread(server: NatsServer) -> None:
    bodies = [f"order {n}".encode() for n in range(50)]
    with AmqpListener(nats=server.url) as url:
        publish(url, *bodies)
        assert take(url, 50) == bodies
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(url))


async def test_asyncio_has_the_same_and_its_loop_goes_on(server: NatsServer) -> None:
    listener = aio.AmqpListener(nats=server.url)
    assert listener.state == "new"
    async with listener as url:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        other = asyncio.ensure_future(others())
        await asyncio.to_thread(publish, url, b"one", b"two")
        assert await asyncio.to_thread(take, url, 2) == [b"one", b"two"]
        other.cancel()
        assert turns > 5
        waits = asyncio.ensure_future(listener.wait())
        await asyncio.sleep(0)
        assert not waits.done()
        await listener.stop()
        await waits
    assert listener.state == "stopped"


def test_what_was_stored_is_there_for_the_next_listener(server: NatsServer) -> None:
    with AmqpListener(nats=server.url) as url:
        publish(url, b"kept")
    with AmqpListener(nats=server.url) as url:
        assert take(url, 1) == [b"kept"]


def test_users_vhosts_and_address_are_those_that_were_given(server: NatsServer) -> None:
    listener = AmqpListener(
        nats=server.url, listen="127.0.0.1:0", users={"app": "s/e:c@ret", "ops": "x"}, vhosts=["shop", "/"]
    ).start()
    host, port = listener.address
    assert (host, listener.tls_address, listener.state, listener.trouble) == ("127.0.0.1", None, "running", None)
    assert listener.url == f"amqp://app:s%2Fe%3Ac%40ret@127.0.0.1:{port}/shop"
    publish(listener.url, b"one")
    publish(f"amqp://ops:x@127.0.0.1:{port}/%2F", b"two")
    for refused in (f"amqp://guest:guest@127.0.0.1:{port}/shop", f"amqp://ops:x@127.0.0.1:{port}/nowhere"):
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(refused))
    listener.stop()
    listener.stop()
    assert listener.state == "stopped"
    listener.wait()


def test_a_client_that_stays_is_told_and_then_cut(server: NatsServer) -> None:
    listener = AmqpListener(nats=server.url).start()
    connection = pika.BlockingConnection(pika.URLParameters(listener.url))
    assert listener.connections == 1
    # This thread cannot answer `connection.close` while it waits here.
    listener.stop(budget_ms=200)
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as raised:
        while True:
            connection.process_data_events(1)
    assert raised.value.reply_code == 320


def test_what_is_wrong_is_a_typed_error_that_names_the_option(server: NatsServer) -> None:
    with pytest.raises(nats_bridge.InvalidConfig, match="users") as raised:
        AmqpListener(nats=server.url, listen="0.0.0.0:0").start()
    assert (raised.value.code, raised.value.landed, raised.value.context["field"]) == ("config", "no", "users")
    with pytest.raises(nats_bridge.InvalidConfig, match="listen nonsense"):
        AmqpListener(nats=server.url, listen="nonsense").start()
    with pytest.raises(nats_bridge.InvalidConfig, match="tls_key"):
        AmqpListener(nats=server.url, listen_tls="127.0.0.1:0", tls_cert="x").start()
    with pytest.raises(nats_bridge.InvalidConfig, match="tls_client_ca") as raised:
        AmqpListener(
            nats=server.url, listen_tls="127.0.0.1:0", tls_cert="x", tls_key="x", tls_client_optional=True
        ).start()
    assert raised.value.context["field"] == "tls_client_optional"
    with pytest.raises(nats_bridge.InvalidConfig, match="nothing.pem"):
        AmqpListener(
            nats=server.url, listen_tls="127.0.0.1:0", tls_cert="/nothing.pem", tls_key="/nothing.pem"
        ).start()
    with pytest.raises(TypeError, match="'lisen'"):
        AmqpListener(nats=server.url, lisen="127.0.0.1:0").start()  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="'vhosts'"):
        AmqpListener(nats=server.url, vhosts=7).start()  # pyright: ignore[reportArgumentType]
    with pytest.raises(nats_bridge.Unreachable):
        AmqpListener(nats="nats://127.0.0.1:1", connect={"connect_timeout_ms": 500}).start()
    with pytest.raises(nats_bridge.Closed):
        _ = AmqpListener(nats=server.url).url
    listener = AmqpListener(nats=server.url).start()
    with pytest.raises(nats_bridge.Conflict):
        listener.start()
    with pytest.raises(nats_bridge.Conflict, match="listen 127.0.0.1"):
        AmqpListener(nats=server.url, listen=f"127.0.0.1:{listener.address[1]}").start()
    listener.stop()


def test_a_wait_ends_when_another_thread_stops_the_listener(server: NatsServer) -> None:
    listener = AmqpListener(nats=server.url).start()
    ended = threading.Event()

    def wait() -> None:
        listener.wait()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not ended.is_set()
    listener.stop()
    eventually(ended.is_set, "the wait ends")
    thread.join()


FORK = """
import os, sys, nats_bridge
listener = nats_bridge.AmqpListener(nats=sys.argv[1]).start()
child = os.fork()
if child == 0:
    try:
        listener.stop()
    except nats_bridge.Forked as error:
        assert (error.code, error.landed) == ("forked", "no")
        del listener
        os._exit(0)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert listener.state == "running"
listener.stop()
"""

EXIT = """
import sys, nats_bridge, pika
listener = nats_bridge.AmqpListener(nats=sys.argv[1]).start()
connection = pika.BlockingConnection(pika.URLParameters(listener.url))
connection.channel().queue_declare("left", durable=True)
"""


@pytest.mark.parametrize("script", [FORK, EXIT], ids=["a forked child is refused", "a process that stops nothing ends"])
def test_at_the_edges_of_a_process(server: NatsServer, script: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, server.url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # What it left behind of its lease keeps nobody out.
    with AmqpListener(nats=server.url) as url:
        publish(url, b"one")
