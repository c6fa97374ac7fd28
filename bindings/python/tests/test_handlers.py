"""Handlers over deliveries, in threads and in asyncio."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import nats_bridge
from nats_bridge import Bridge, GiveUp, Received, RetryPolicy, aio
from server import NatsServer

QUICK: RetryPolicy = {"attempts": 3, "first_pause_ms": 20, "factor": 1, "jitter": False}


def orders(bridge: Bridge, count: int, keys: int = 1) -> None:
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
    bridge.publish_many((f"orders.c{n % keys}", str(n).encode()) for n in range(count))


def customer(message: Received) -> str:
    return message.subject


class Seen:
    """What a handler saw; it drains the consumer when everything was."""

    def __init__(self, expected: int, drain: Callable[[], object]) -> None:
        self.numbers: list[int] = []
        self.letters = 0
        self.most = 0
        self._running = 0
        self._expected = expected
        self._drain = drain
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)

    def end(self, number: int | None = None, letter: bool = False) -> None:
        with self._lock:
            self._running -= 1
            self.letters += letter
            if number is not None:
                self.numbers.append(number)
            if len(self.numbers) + self.letters == self._expected:
                self._drain()

    def check(self, expected: int, keys: int) -> None:
        broken = [n for n in range(expected) if n % 7 == 1]
        assert sorted(self.numbers) == [n for n in range(expected) if n not in broken]
        assert self.letters == len(broken)
        for key in range(keys):
            of_key = [n for n in self.numbers if n % keys == key]
            assert of_key == sorted(of_key), key


def fate(message: Received) -> int | None:
    """The number of a message that is handled; ``None`` for one that is given up."""
    number = int(message.payload)
    if number % 7 == 0 and message.attempt == 1:
        raise ValueError("not yet")
    return None if number % 7 == 1 else number


def test_messages_of_one_key_are_handled_in_order_and_keys_side_by_side(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 140, keys=10)
        with bridge.consume("ORDERS", "billing", retry=QUICK) as consumer:
            seen = Seen(140, consumer.begin_to_drain)

            def handle(message: Received) -> None:
                seen.begin()
                time.sleep(0.002)
                try:
                    number = fate(message)
                except ValueError:
                    seen.end()
                    raise
                seen.end(number, letter=number is None)
                if number is None:
                    raise GiveUp("no order", reason="schema")

            consumer.run(handle, concurrency=4, key=customer)
        seen.check(140, keys=10)
        assert 2 <= seen.most <= 4
        with bridge.consume("ORDERS_DLQ", "reader") as letters:
            letter = letters.next(5_000)
            assert letter is not None
            assert letter.header("Dead-Letter-Reason") == "schema"
            assert letter.header("Dead-Letter-Attempts") == "1"
            letter.ack()


async def test_with_asyncio_messages_of_one_key_are_handled_in_order(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
        await bridge.publish_many((f"orders.c{n % 10}", str(n).encode()) for n in range(140))
        async with bridge.consume("ORDERS", "billing", retry=QUICK) as consumer:
            seen = Seen(140, consumer.begin_to_drain)

            async def handle(message: Received) -> None:
                seen.begin()
                await asyncio.sleep(0.002)
                try:
                    number = fate(message)
                except ValueError:
                    seen.end()
                    raise
                seen.end(number, letter=number is None)
                if number is None:
                    raise GiveUp("no order", reason="schema")

            await consumer.run(handle, concurrency=4, key=customer)
        seen.check(140, keys=10)
        assert 2 <= seen.most <= 4


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_reason_that_is_none_costs_a_retry_and_not_the_run(server: NatsServer, concurrency: int) -> None:
    class Own(GiveUp):
        def __init__(self) -> None:
            super().__init__("y")
            self.reason = "bogus"  # pyright: ignore[reportAttributeAccessIssue]

    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 2)
        with bridge.consume("ORDERS", "billing", retry={**QUICK, "attempts": 2}) as consumer:
            handled: list[int] = []

            def handle(message: Received) -> None:
                handled.append(int(message.payload))
                if len(handled) == 4:
                    consumer.begin_to_drain()
                if handled[-1] == 0:
                    raise GiveUp("x", reason="bogus")  # pyright: ignore[reportArgumentType]
                raise Own

            consumer.run(handle, concurrency=concurrency, key=customer)
        letters = bridge.dead_letters("ORDERS_DLQ").peek()
        assert [letter.reason for letter in letters] == ["handler_error", "handler_error"]


def test_with_a_concurrency_of_1_the_handler_runs_in_the_thread_that_calls(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 20)
        with bridge.consume("ORDERS", "billing") as consumer:
            seen: list[tuple[int, int]] = []

            def handle(message: Received) -> None:
                seen.append((int(message.payload), threading.get_ident()))
                if len(seen) == 20:
                    consumer.begin_to_drain()

            consumer.run(handle)
        assert seen == [(n, threading.get_ident()) for n in range(20)]


def test_an_exception_of_handler_or_key_follows_the_policy(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 2, keys=2)
        with bridge.consume("ORDERS", "billing", retry=QUICK) as consumer:
            attempts: list[int] = []

            def key(message: Received) -> str:
                if message.subject == "orders.c1":
                    raise KeyError("no customer")
                return message.subject

            def handle(message: Received) -> None:
                attempts.append(message.attempt)
                raise ZeroDivisionError("no such order")

            runs = threading.Thread(target=lambda: consumer.run(handle, concurrency=2, key=key))
            runs.start()
            with bridge.consume("ORDERS_DLQ", "reader") as letters:
                details: set[str | None] = set()
                for _ in range(2):
                    letter = letters.next(10_000)
                    assert letter is not None
                    details.add(letter.header("Dead-Letter-Detail"))
                    assert letter.header("Dead-Letter-Reason") == "handler_error"
                    letter.ack()
            consumer.drain()
            runs.join()
        assert attempts == [1, 2, 3]
        assert details == {"no such order", "'no customer'"}


async def test_an_exception_of_an_asyncio_handler_follows_the_policy_and_a_plain_function_is_one(
    server: NatsServer,
) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        await bridge.publish("orders.new", b"one")
        attempts: list[int] = []

        def handle(message: Received) -> None:
            attempts.append(message.attempt)
            raise ZeroDivisionError

        runs = asyncio.create_task(bridge.consume("ORDERS", "billing", retry=QUICK).run(handle, concurrency=2))
        # Before it runs, its dead-letter stream is made.
        while len(attempts) < 3:
            await asyncio.sleep(0.01)
        async for letter in bridge.consume("ORDERS_DLQ", "reader"):
            assert letter.header("Dead-Letter-Reason") == "handler_error"
            await letter.ack()
            break
        assert attempts == [1, 2, 3]
        runs.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runs


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_handler_whose_work_is_not_done_when_it_returns_acks_nothing(server: NatsServer, concurrency: int) -> None:
    async def coroutine(message: Received) -> None:
        raise AssertionError(f"nobody awaits {message}")

    def generator(message: Received) -> Iterator[Received]:
        yield message

    class Called:
        async def __call__(self, message: Received) -> None:
            await coroutine(message)

    async def key(message: Received) -> str:
        return message.subject

    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        with bridge.consume("ORDERS", "billing", retry={**QUICK, "attempts": 1}) as consumer:
            for handler in (coroutine, generator, Called()):
                with pytest.raises(TypeError, match="argument 'handler'"):
                    consumer.run(handler, concurrency=concurrency)
            with pytest.raises(TypeError, match="argument 'key'.*'async def'"):
                consumer.run(print, concurrency=concurrency, key=key)  # pyright: ignore[reportArgumentType]
            # One that shows only when it is called has failed.
            runs = threading.Thread(target=lambda: consumer.run(lambda it: coroutine(it), concurrency=concurrency))
            runs.start()
            with bridge.consume("ORDERS_DLQ", "reader") as letters:
                letter = letters.next(10_000)
                assert letter is not None
                assert "returned a coroutine" in (letter.header("Dead-Letter-Detail") or "")
                letter.ack()
            consumer.drain()
            runs.join()


async def test_an_asyncio_handler_that_is_a_generator_is_refused(server: NatsServer) -> None:
    async def generator(message: Received) -> AsyncIterator[Received]:
        yield message

    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
        async with bridge.consume("ORDERS", "billing") as consumer:
            with pytest.raises(TypeError, match="argument 'handler'.*yield"):
                await consumer.run(generator)  # pyright: ignore[reportArgumentType]


def test_a_drain_waits_for_handlers_and_what_was_not_begun_is_for_others(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 10)
        consumer = bridge.consume("ORDERS", "billing")
        begun, go_on = threading.Event(), threading.Event()
        handled: list[int] = []

        def handle(message: Received) -> None:
            begun.set()
            go_on.wait(15)
            handled.append(int(message.payload))

        runs = threading.Thread(target=lambda: consumer.run(handle, concurrency=2))
        runs.start()
        assert begun.wait(15)
        with pytest.raises(nats_bridge.Timeout):
            consumer.drain(budget_ms=100)
        go_on.set()
        consumer.drain()
        runs.join()
        assert (consumer.state, consumer.next(0)) == ("stopped", None)
        rest: set[int] = set()
        with bridge.consume("ORDERS", "billing") as others:
            while len(rest) < 10 - len(handled):
                delivery = others.next(10_000)
                assert delivery is not None
                rest.add(int(delivery.payload))
                delivery.ack()
        assert rest.isdisjoint(handled)


def test_a_consumer_has_one_taker(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 0)
        with bridge.consume("ORDERS", "billing") as consumer:
            for wrong in (0, 2_000, -1):
                with pytest.raises(nats_bridge.InvalidConfig, match="concurrency"):
                    consumer.run(print, concurrency=wrong)
            begun = threading.Event()
            runs = threading.Thread(target=lambda: consumer.run(lambda _: begun.set(), concurrency=2))
            runs.start()
            bridge.publish("orders.c0", b"one")
            assert begun.wait(15)
            with pytest.raises(nats_bridge.InvalidConfig, match="run"):
                consumer.run(print)
            assert consumer.next(0) is None
            consumer.drain()
            runs.join()


async def test_a_delivery_that_came_for_nobody_does_not_hold_up_a_drain(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        consumer = await bridge.consume("ORDERS", "billing")
        waits = asyncio.ensure_future(consumer.next())
        await asyncio.sleep(0)
        await bridge.publish("orders.new", b"one")
        waits.cancel()
        try:
            delivery = await waits
            assert delivery is not None
            await delivery.ack()
        except asyncio.CancelledError:
            pass
        await consumer.drain(20_000)
        assert consumer.held == 0


async def test_a_delivery_that_is_given_back_after_the_drain_has_begun_does_not_hold_it_up(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        await bridge.publish("orders.new", b"one")
        consumer = await bridge.consume("ORDERS", "billing")
        delivery = await consumer.next()
        assert delivery is not None
        drains = asyncio.create_task(consumer.drain(20_000))
        while consumer.state != "draining":
            await asyncio.sleep(0.01)
        # As a wait does that was cancelled just before, when its delivery was on its way to the event loop.
        consumer._give_back(delivery._native)  # pyright: ignore[reportPrivateUsage]
        await drains
        assert consumer.held == 0


INTERRUPT = """
import sys, threading, time, nats_bridge
bridge = nats_bridge.connect(sys.argv[1])
bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
bridge.publish("orders.new", b"one")
def handle(message):
    print("begun", flush=True)
    sys.stdin.readline()
    print("handled", flush=True)
with bridge.consume("ORDERS", "billing") as consumer:
    consumer.run(handle, concurrency=2)
"""


def test_ctrl_c_waits_for_the_handlers_that_run(server: NatsServer) -> None:
    listening = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", listening + INTERRUPT, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate("\n", timeout=15)
    assert out == "handled\n"
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("keyed", [False, True])
def test_sys_exit_in_a_handler_ends_the_run_and_is_no_failure_of_the_message(
    server: NatsServer, concurrency: int, keyed: bool
) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        # A failed message would be away for this long.
        retry: RetryPolicy = {"attempts": 3, "first_pause_ms": 600_000, "jitter": False}
        consumer = bridge.consume("ORDERS", "billing", retry=retry)
        with pytest.raises(SystemExit) as left:
            consumer.run(lambda _: sys.exit("enough"), concurrency=concurrency, key=customer if keyed else None)
        assert left.value.code == "enough"
        with bridge.consume("ORDERS", "billing", retry=retry) as again:
            delivery = again.next(10_000)
            assert delivery is not None and delivery.payload == b"0"
            delivery.ack(confirmed=True)
        assert bridge.dead_letters("ORDERS_DLQ").count() == 0


EXITS = """
import asyncio, sys
from nats_bridge import aio
async def handle(message):
    sys.exit(7)
async def main():
    async with aio.connect(sys.argv[1]) as bridge:
        await bridge.consume("ORDERS", "billing", retry={"first_pause_ms": 600_000}).run(handle, concurrency=4)
asyncio.run(main())
"""


def test_sys_exit_in_a_coroutine_ends_the_program_and_is_no_failure_of_the_message(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge, 1)
        ran = subprocess.run(
            [sys.executable, "-c", EXITS, server.url], capture_output=True, text=True, timeout=30, check=False
        )
        assert ran.returncode == 7, ran
        with bridge.consume("ORDERS", "billing", ack_wait_ms=1_000) as again:
            delivery = again.next(40_000)
            assert delivery is not None
            delivery.ack()
        assert bridge.dead_letters("ORDERS_DLQ").count() == 0
