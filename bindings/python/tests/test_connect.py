import pickle
from pathlib import Path

import pytest

import nats_bridge
from server import NatsServer


def test_nobody_at_the_address_is_unreachable_and_temporary() -> None:
    with pytest.raises(nats_bridge.Unreachable) as raised:
        nats_bridge.connect("nats://127.0.0.1:1", connect_timeout_ms=500)
    assert (raised.value.code, raised.value.landed, raised.value.is_temporary) == ("unreachable", "no", True)
    assert isinstance(raised.value, nats_bridge.Error)


def test_a_bad_option_is_named(server: NatsServer) -> None:
    with pytest.raises(TypeError, match="'nam'"):
        nats_bridge.connect(server.url, nam="x")  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="'name'"):
        nats_bridge.connect(server.url, name=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(nats_bridge.InvalidConfig, match="connect_timeout_ms"):
        nats_bridge.connect(server.url, connect_timeout_ms=-1)
    with pytest.raises(nats_bridge.InvalidConfig, match="field=publish.max_in_flight why=it is 1 to"):
        nats_bridge.connect(server.url, publish={"max_in_flight": 0})
    with pytest.raises(nats_bridge.InvalidConfig, match="password"):
        nats_bridge.connect(server.url, user="me")


def test_a_login_comes_from_a_file_that_is_read_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("wrong\n")
    with NatsServer("--user", "orders", "--pass", "right") as server:
        with pytest.raises(nats_bridge.Denied):
            nats_bridge.connect(server.url, user="orders", password_file=file)
        file.write_text("right\n")
        with nats_bridge.connect(server.url, user="orders", password_file=file) as bridge:
            bridge.ensure_stream("ORDERS", unbounded=True)
    with NatsServer("--auth", "right") as server:
        with nats_bridge.connect(server.url, token_file=str(file)) as bridge:
            bridge.ensure_stream("ORDERS", unbounded=True)
        with pytest.raises(nats_bridge.InvalidConfig, match="nkey_file"):
            nats_bridge.connect(server.url, nkey_file=file)


def test_two_ways_to_log_in_or_half_of_one_are_refused(server: NatsServer) -> None:
    with pytest.raises(nats_bridge.InvalidConfig, match="token is given too"):
        nats_bridge.connect(server.url, token="t", nkey="SU")
    with pytest.raises(nats_bridge.InvalidConfig, match="password_file"):
        nats_bridge.connect(server.url, password_file="secret")


def test_what_is_no_server_is_a_type_error_that_says_what_is() -> None:
    for wrong in (b"x", None, [3]):
        with pytest.raises(TypeError, match="argument 'servers': a URL"):
            nats_bridge.connect(wrong)  # pyright: ignore[reportArgumentType]


def test_several_servers_are_a_list_or_separated_by_commas(server: NatsServer) -> None:
    for servers in ([server.url, "nats://127.0.0.1:1"], f"nats://127.0.0.1:1, {server.url}"):
        with nats_bridge.connect(servers) as bridge:
            assert bridge.server_version.startswith("2.")


def test_a_closed_bridge_says_so_and_closing_twice_is_fine(server: NatsServer) -> None:
    bridge = nats_bridge.connect(server.url)
    bridge.ensure_stream("ORDERS", unbounded=True)
    bridge.close()
    assert (bridge.stats().closed, bridge.stats().connected) == (True, False)
    bridge.close()
    with pytest.raises(nats_bridge.Closed):
        bridge.publish("orders.new", b"one")


def test_after_close_nothing_lands_or_waits(server: NatsServer) -> None:
    bridge = nats_bridge.connect(server.url)
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
    bridge.publish("orders.new", b"one")
    consumer = bridge.consume("ORDERS", "billing")
    held = consumer.next(5_000)
    assert held is not None
    with pytest.raises(nats_bridge.Timeout):
        consumer.drain(50)
    bridge.close()
    with pytest.raises(nats_bridge.Closed):
        consumer.next()
    with pytest.raises(nats_bridge.Closed) as raised:
        bridge.publish("orders.new", b"late")
    assert raised.value.landed == "no"
    with pytest.raises(nats_bridge.Closed):
        bridge.ensure_stream("ZZ", unbounded=True)
    with pytest.raises(nats_bridge.Closed):
        bridge.dead_letters("ORDERS_DLQ")


def test_an_error_inside_the_block_is_the_one_that_is_raised(server: NatsServer) -> None:
    with pytest.raises(ZeroDivisionError):
        with nats_bridge.connect(server.url):
            _ = 1 // 0


def test_errors_can_be_pickled() -> None:
    error = nats_bridge.Timeout("timeout: x", code="timeout", landed="unknown", context={"msg_id": "o-1"})
    copy: object = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, nats_bridge.Timeout)
    assert (str(copy), copy.landed, dict(copy.context)) == ("timeout: x", "unknown", {"msg_id": "o-1"})


def test_a_wrong_stream_is_refused_and_names_the_option(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        with pytest.raises(nats_bridge.InvalidConfig, match="max_bytes"):
            bridge.ensure_stream("ORDERS")
        with pytest.raises(TypeError, match="'replicas'"):
            bridge.ensure_stream("ORDERS", replicas="three")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="there is no option 'subject'"):
            bridge.ensure_stream("ORDERS", subject="x")  # pyright: ignore[reportCallIssue]
        bridge.ensure_stream("ORDERS", unbounded=True)
        bridge.ensure_stream("ORDERS", unbounded=True)
        with pytest.raises(nats_bridge.Conflict, match="retention"):
            bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        with pytest.raises(nats_bridge.NotFound):
            bridge.ensure_consumer("NOT_THERE", "billing")


def test_objects_say_what_they_are_and_no_secret(server: NatsServer, tmp_path: Path) -> None:
    bridge = nats_bridge.connect(server.url)
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
    assert repr(bridge).startswith("<nats_bridge.Bridge connected server=2.")
    consumer = bridge.consume("ORDERS", "billing")
    assert repr(consumer) == "<nats_bridge.Consumer ORDERS/billing running held=0>"
    assert repr(bridge.dead_letters("ORDERS_DLQ")) == "<nats_bridge.DeadLetters ORDERS_DLQ>"
    with nats_bridge.open_outbox(tmp_path / "outbox") as outbox:
        assert repr(outbox).startswith("<nats_bridge.Outbox waiting=0 refused=0 bytes=")
    bridge.close()
    assert repr(bridge).startswith("<nats_bridge.Bridge closed ")
    listener = nats_bridge.AmqpListener(nats=server.url, users={"app": "secret"})
    assert repr(listener) == "<nats_bridge.AmqpListener new>"
    with listener:
        assert repr(listener).startswith("<nats_bridge.AmqpListener running 127.0.0.1:") and "secret" not in repr(listener)
