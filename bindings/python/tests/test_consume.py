import gc
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import nats_bridge
from nats_bridge import Bridge, Delivery, RetryPolicy
from server import NatsServer, eventually

QUICK: RetryPolicy = {"attempts": 3, "first_pause_ms": 20, "factor": 1, "jitter": False}


def orders(bridge: Bridge, count: int = 0) -> None:
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
    for n in range(1, count + 1):
        bridge.publish("orders.new", f"order {n}".encode(), id=f"o-{n}")


def some(delivery: Delivery | None) -> Delivery:
    assert delivery is not None, "a delivery was expected"
    return delivery


def test_what_was_published_is_delivered_whole_and_an_ack_ends_it(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        before = datetime.now(UTC) - timedelta(minutes=1)
        bridge.publish("orders.new", b"\x00\xff", id="o-1", headers={"tenant": "acme", "tag": ["a", "b"]})
        with bridge.consume("ORDERS", "billing") as deliveries:
            delivery = some(deliveries.next(5_000))
            assert (delivery.subject, delivery.payload, delivery.id) == ("orders.new", b"\x00\xff", "o-1")
            assert delivery.headers == {"tenant": ["acme"], "tag": ["a", "b"], "Nats-Msg-Id": ["o-1"]}
            assert (delivery.header("tag"), delivery.header("none")) == ("a", None)
            assert (delivery.attempt, delivery.sequence, delivery.pending) == (1, 1, 0)
            assert before < delivery.stored_at < datetime.now(UTC) + timedelta(minutes=1)
            assert (deliveries.held, delivery.settled) == (1, False)
            assert delivery.ack(confirmed=True).outcome == "acked"
            assert (deliveries.held, delivery.settled) == (0, True)
            assert deliveries.next(100) is None
        with bridge.consume("ORDERS", "billing") as deliveries:
            assert deliveries.next(200) is None


def test_a_consumer_is_an_iterator_that_ends_when_it_is_drained(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 10)
        seen: list[bytes] = []
        with bridge.consume("ORDERS", "billing") as deliveries:
            for delivery in deliveries:
                seen.append(delivery.payload)
                delivery.ack()
                if delivery.pending == 0:
                    deliveries.drain()
            assert deliveries.state == "stopped"
        assert seen == [f"order {n}".encode() for n in range(1, 11)]


def test_a_handler_that_is_no_function_is_refused_and_nothing_is_delivered_to_it(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing") as consumer:
            with pytest.raises(TypeError, match="argument 'key': a function is wanted, not str"):
                consumer.run(print, key="subject")  # pyright: ignore[reportArgumentType]
            with pytest.raises(TypeError, match="argument 'handler': a function is wanted, not int"):
                consumer.run(3)  # pyright: ignore[reportArgumentType]
            assert some(consumer.next(5_000)).ack().outcome == "acked"


def test_a_failed_message_is_retried_by_policy_and_then_a_dead_letter_with_its_headers(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        bridge.publish("orders.new", b"bad", id="o-1", headers={"tenant": "acme"})
        with bridge.consume("ORDERS", "billing", retry=QUICK) as deliveries:
            for attempt in (1, 2):
                delivery = some(deliveries.next(5_000))
                assert delivery.attempt == attempt
                settled = delivery.retry(ValueError("no such tea"))
                assert (settled.outcome, settled.after_ms) == ("retried", 20)
            last = some(deliveries.next(5_000)).retry(ValueError("no such tea"))
            assert (last.outcome, last.stream, last.sequence) == ("dead_lettered", "ORDERS_DLQ", 1)
            assert deliveries.next(200) is None
        with bridge.consume("ORDERS_DLQ", "reader") as letters:
            letter = some(letters.next(5_000))
            assert (letter.payload, letter.header("tenant")) == (b"bad", "acme")
            said = {name: values[0] for name, values in letter.headers.items()}
            assert said["Dead-Letter-Reason"] == "handler_error"
            assert said["Dead-Letter-Detail"] == "no such tea"
            assert (said["Dead-Letter-Stream"], said["Dead-Letter-Sequence"]) == ("ORDERS", "1")
            assert (said["Dead-Letter-Subject"], said["Dead-Letter-Consumer"]) == ("orders.new", "billing")
            assert said["Dead-Letter-Attempts"] == "3"
            original = {nats_bridge.original_name(name): value for name, value in said.items()}
            assert (original["Nats-Msg-Id"], original["tenant"]) == ("o-1", "acme")
            assert len(said["Dead-Letter-Fingerprint"]) == 16
            letter.ack()


def test_a_delay_of_ones_own_replaces_the_policys(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing") as deliveries:
            assert some(deliveries.next(5_000)).retry("not \udcff Unicode", delay_ms=30).after_ms == 30
            again = some(deliveries.next(5_000))
            assert again.attempt == 2
            with pytest.raises(nats_bridge.InvalidConfig, match="delay_ms"):
                again.retry("later", delay_ms=-1)
            again.ack()


def test_dead_letter_gives_up_at_once_and_says_why(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 2)
        with bridge.consume("ORDERS", "billing") as deliveries:
            delivery = some(deliveries.next(5_000))
            with pytest.raises(nats_bridge.InvalidConfig, match="reason.*one of handler_error, .*crash_loop"):
                delivery.dead_letter("x", reason="bad")  # pyright: ignore[reportArgumentType]
            assert delivery.dead_letter("not an order").stream == "ORDERS_DLQ"
            some(deliveries.next(5_000)).dead_letter(KeyError("price"), reason="schema")
        with bridge.consume("ORDERS_DLQ", "reader") as letters:
            reasons: list[str | None] = []
            for _ in range(2):
                letter = some(letters.next(5_000))
                reasons.append(letter.header("Dead-Letter-Reason"))
                letter.ack()
            assert reasons == ["rejected", "schema"]


def test_a_second_settle_is_a_typed_error(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing") as deliveries:
            delivery = some(deliveries.next(5_000))
            delivery.ack()
            for again in (delivery.ack, delivery.retry, delivery.dead_letter):
                with pytest.raises(nats_bridge.AlreadySettled) as raised:
                    again()
                assert (raised.value.code, raised.value.landed) == ("already_settled", "no")
                assert raised.value.context["sequence"] == "1"
            assert delivery.payload == b"order 1"


def test_a_delivery_that_is_let_go_counts_as_failed_and_comes_again(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing", retry=QUICK) as deliveries:
            assert some(deliveries.next(5_000)).attempt == 1
            gc.collect()
            again = some(deliveries.next(5_000))
            assert again.attempt == 2
            again.ack()


def test_an_exception_in_the_loop_leaves_the_block_at_once_and_loses_nothing(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 3)

        def failing() -> None:
            with bridge.consume("ORDERS", "billing", retry=QUICK) as deliveries:
                for _ in deliveries:
                    raise ZeroDivisionError

        started = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            failing()
        assert time.monotonic() - started < 4
        gc.collect()
        with bridge.consume("ORDERS", "billing", retry=QUICK) as deliveries:
            seen: set[int] = set()
            while len(seen) < 3:
                delivery = some(deliveries.next(10_000))
                seen.add(delivery.sequence)
                delivery.ack()
        assert seen == {1, 2, 3}


def test_threads_share_a_consumer_and_each_message_comes_to_one(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 200)
        seen: list[int] = []
        with bridge.consume("ORDERS", "billing") as deliveries:

            def work() -> None:
                for delivery in deliveries:
                    seen.append(delivery.sequence)
                    delivery.ack()

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            eventually(lambda: len(seen) == 200, "all were delivered")
            deliveries.drain()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
        assert sorted(seen) == list(range(1, 201))


def test_a_wrong_option_or_stream_is_named(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        with pytest.raises(nats_bridge.NotFound):
            bridge.consume("NOT_THERE", "billing")
        orders(bridge)
        with pytest.raises(TypeError, match="'retries'"):
            bridge.consume("ORDERS", "billing", retries=3)  # pyright: ignore[reportCallIssue]
        with pytest.raises(TypeError, match="'retry.attempt'"):
            bridge.consume("ORDERS", "billing", retry={"attempt": 3})  # pyright: ignore[reportArgumentType]
        with pytest.raises(nats_bridge.InvalidConfig, match="attempts"):
            bridge.consume("ORDERS", "billing", retry={"attempts": 0})
        with pytest.raises(nats_bridge.InvalidConfig, match="max_messages"):
            bridge.consume("ORDERS", "billing", max_messages=0)
        for ack_wait_ms in (-1, 1):
            with pytest.raises(nats_bridge.InvalidConfig, match="field=ack_wait_ms"):
                bridge.consume("ORDERS", "billing", ack_wait_ms=ack_wait_ms)


def test_deliveries_go_on_after_the_server_was_away(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, reconnect_pause_max_ms=100) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing", heartbeat_ms=500) as deliveries:
            some(deliveries.next(5_000)).ack(confirmed=True)
            server.stop()
            server.start()
            bridge.publish("orders.new", b"order 2", id="o-2")
            delivery = some(deliveries.next(15_000))
            assert delivery.payload == b"order 2"
            delivery.ack()


def test_after_close_every_next_says_closed(server: NatsServer) -> None:
    bridge = nats_bridge.connect(server.url)
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
    consumer = bridge.consume("ORDERS", "billing")
    bridge.close()
    for _ in range(3):
        with pytest.raises(nats_bridge.Closed):
            consumer.next(10_000)


def test_the_dead_letter_stream_takes_the_room_that_it_is_given_and_names_it_where_there_is_none(tmp_path: Path) -> None:
    config = tmp_path / "server.conf"
    config.write_text("jetstream { max_file_store: 200MB, max_memory_store: 64MB }")
    with NatsServer("--config", str(config)) as small, nats_bridge.connect(small.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
        with pytest.raises(nats_bridge.Rejected) as refused:
            bridge.consume("ORDERS", "billing")
        context = refused.value.context
        assert (context["stream"], context["max_bytes"]) == ("ORDERS_DLQ", str(1 << 30))
        assert context["field"] == "dead_letter_max_bytes" and "with `dead_letter_max_bytes`" in context["fix"]
        with bridge.consume("ORDERS", "billing", dead_letter_max_bytes=10_000_000) as consumer:
            assert consumer.state == "running"
        # The dead letters have room, the advisories have none.
        bridge.ensure_stream("OTHER", unbounded=True)
        with pytest.raises(nats_bridge.Rejected, match="turn `advisories` off") as refused:
            bridge.consume("OTHER", "billing", dead_letter_max_bytes=100_000_000)
        assert (refused.value.context["stream"], refused.value.context["field"]) == ("OTHER_ADVISORIES", "advisories")
        with bridge.consume("OTHER", "billing", dead_letter_max_bytes=100_000_000, advisories=False) as consumer:
            assert consumer.state == "running"
        for wrong in (0, -1):
            with pytest.raises(nats_bridge.InvalidConfig, match="dead_letter_max_bytes"):
                bridge.consume("ORDERS", "billing", dead_letter_max_bytes=wrong)
        with pytest.raises(nats_bridge.InvalidConfig, match="dead_letter_max_bytes"):
            bridge.consume("ORDERS", "billing", dead_letter_max_bytes=1, dead_letter_stream="OTHER")
