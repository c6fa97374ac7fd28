"""What is given an argument of a type that it does not take says which one: every call, for threads and for asyncio."""

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

import nats_bridge
from nats_bridge import InvalidConfig, aio
from server import NatsServer

# What a call gets besides the argument that is wrong. Nothing of it is reached.
FINE: dict[str, object] = {
    "bucket": "BUCKET",
    "compatibility": "NONE",
    "file": "letters.jsonl",
    "handler": print,
    "id": "one",
    "keep_ms": 60_000,
    "lease_ms": 1_000,
    "manifest": "",
    "messages": (),
    "name": "billing",
    "number": 1,
    "path": "orders.outbox",
    "payload": b"one",
    "percent": 5,
    "rabbit": "amqp://127.0.0.1:1",
    "schema": "{}",
    "sequence": 1,
    "stream": "ORDERS",
    "subject": "orders.new",
}

# What failed may be anything: a message is settled all the same.
ANYTHING = {"why"}

# Options within options.
WITHIN: dict[str, type] = {
    "retry": nats_bridge.RetryPolicy,
    "publish": nats_bridge.PublishOptions,
    "publish.breaker": nats_bridge.BreakerOptions,
    "connect": nats_bridge.ConnectOptions,
}

Case = tuple[str, Callable[[], object], str]


def wrong_for(annotation: object) -> list[object]:
    """Values that fit no argument that is annotated so."""
    said = str(annotation)
    wrong: list[object] = [object()]
    if annotation is inspect.Parameter.empty:
        return wrong
    if not re.search(r"int|float|bool", said):
        wrong.append(5)
    if "str" not in said and "Literal" not in said:
        wrong.append("x")
    if re.search(r"\bint\b", said) and "float" not in said:
        wrong.append(1.5)
    return wrong


def nested(name: str, value: object) -> dict[str, object]:
    """``retry.attempts`` as an option: a dict in ``retry``."""
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return typing.cast("dict[str, object]", value)


def options_of(kind: type, within: str = "") -> Iterator[tuple[str, object]]:
    for option, annotation in kind.__annotations__.items():
        yield f"{within}{option}", annotation
        if (inner := WITHIN.get(f"{within}{option}".removeprefix("connect."))) is not None:
            yield from options_of(inner, f"{within}{option}.")


def cases(what: str, call: Callable[..., object], given: Mapping[str, object]) -> Iterator[Case]:
    """Each argument of this call with each value that does not fit."""
    parameters = inspect.signature(call).parameters.values()
    required = {
        parameter.name: given.get(parameter.name, FINE.get(parameter.name))
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            (kind,) = typing.get_args(parameter.annotation)
            for option, annotation in options_of(kind):
                for wrong in wrong_for(annotation):
                    arguments = required | nested(option, wrong)
                    yield f"{what}({option}={wrong!r})", lambda arguments=arguments: call(**arguments), option
            continue
        if parameter.name in ANYTHING:
            continue
        for wrong in wrong_for(parameter.annotation):
            arguments = required | {parameter.name: wrong}
            yield f"{what}({parameter.name}={wrong!r})", lambda arguments=arguments: call(**arguments), parameter.name


def methods(of: object) -> Iterator[tuple[str, Callable[..., object]]]:
    for name, _ in inspect.getmembers(type(of), inspect.isroutine):
        bound: object = getattr(of, name)
        if not name.startswith("_") and callable(bound):
            yield f"{type(of).__name__}.{name}", bound


def of_objects(objects: list[object], given: Mapping[str, object]) -> Iterator[Case]:
    for one in objects:
        for name, call in methods(one):
            yield from cases(name, call, given)


def check(what: str, raised: BaseException | None, name: str) -> str | None:
    """What is wrong with how a wrong argument was refused."""
    if not isinstance(raised, TypeError):
        return f"{what}: {raised!r}"
    return None if f"argument '{name}'" in str(raised) else f"{what}: does not name '{name}': {raised}"


# Of a call that is made: a listener and a sidecar look at their options when they start.
def starting(kind: Callable[..., object]) -> Callable[..., object]:
    def start(*values: object, **options: object) -> object:
        made = kind(*values, **options)
        start: object = getattr(made, "start")
        assert callable(start)
        return start()

    setattr(start, "__signature__", inspect.signature(kind))
    return start


@pytest.fixture
def orders(server: NatsServer) -> Iterator[nats_bridge.Bridge]:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
        bridge.publish("orders.new", b"one")
        bridge.publish("orders.new", b"two")
        yield bridge


def test_a_wrong_argument_is_named(orders: nats_bridge.Bridge, server: NatsServer, tmp_path: Path) -> None:
    outbox = nats_bridge.open_outbox(tmp_path / "orders.outbox")
    # All that is made at its use: one consumer has both messages, one is enough here.
    consumer = orders.consume("ORDERS", "billing")
    delivery = consumer.next(10_000)
    assert delivery is not None
    ledger = orders.ledger("LEDGER", keep_ms=60_000, lease_ms=1_000)
    objects: list[object] = [
        delivery,
        consumer,
        orders.dead_letters("ORDERS_DLQ"),
        orders.schemas("SCHEMAS"),
        ledger,
        ledger.begin("one"),
        orders.health_check(),
        outbox,
        orders,
    ]
    listener = nats_bridge.AmqpListener(server.url)
    # It waits for a RabbitMQ that is not there.
    with listener, NatsServer() as other, (sidecar := nats_bridge.Sidecar("amqp://127.0.0.1:1", other.url)):
        table = list(of_objects([*objects, listener, sidecar], {"bridge": orders}))
        for name in ("connect", "open_outbox", "original_name", "GiveUp"):
            table += cases(name, getattr(nats_bridge, name), {})
        for kind in (nats_bridge.AmqpListener, nats_bridge.Sidecar):
            table += cases(kind.__name__, starting(kind), {})
        wrong: list[str | None] = []
        for what, call, name in table:
            try:
                call()
                wrong.append(f"{what}: nothing was raised")
            except BaseException as raised:
                wrong.append(check(what, raised, name))
    # Nothing was done meanwhile.
    assert not delivery.settled
    delivery.ack()
    outbox.close()
    assert len(table) > 300
    assert [said for said in wrong if said is not None] == []
    tested = {type(one) for one in objects} | {nats_bridge.AmqpListener, nats_bridge.Sidecar, nats_bridge.Received}
    for name in nats_bridge.__all__:
        kind: object = getattr(nats_bridge, name)
        if inspect.isclass(kind) and not issubclass(kind, tuple | dict | Exception) and kind not in tested:
            members = inspect.getmembers(kind, inspect.isfunction)
            taking = [n for n, f in members if n[0] != "_" and len(inspect.signature(f).parameters) > 1]
            assert taking == [], f"{name} is not in the table"


async def test_with_asyncio_a_wrong_argument_is_named(server: NatsServer, tmp_path: Path) -> None:
    async with aio.connect(server.url) as bridge, aio.open_outbox(tmp_path / "orders.outbox") as outbox:
        await bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
        await bridge.publish("orders.new", b"one")
        consumer = await bridge.consume("ORDERS", "billing")
        delivery = await consumer.next(10_000)
        assert delivery is not None
        ledger = await bridge.ledger("LEDGER", keep_ms=60_000, lease_ms=1_000)
        letters, schemas = await bridge.dead_letters("ORDERS_DLQ"), await bridge.schemas("SCHEMAS")
        listener = aio.AmqpListener(server.url)
        with NatsServer() as other:
            sidecar = aio.Sidecar("amqp://127.0.0.1:1", other.url)
            await listener.start()
            await sidecar.start()
            objects: list[object] = [delivery, consumer, letters, schemas, ledger, outbox, sidecar, listener, bridge]
            table = list(of_objects(objects, {"bridge": bridge}))
            for name in ("connect", "open_outbox"):
                table += cases(name, getattr(aio, name), {})
            for kind in (aio.AmqpListener, aio.Sidecar):
                table += cases(kind.__name__, starting(kind), {})
            wrong: list[str | None] = []
            for what, call, name in table:
                try:
                    made = call()
                    if isinstance(made, Awaitable):
                        await typing.cast("Awaitable[object]", made)
                    wrong.append(f"{what}: nothing was raised")
                except BaseException as raised:
                    wrong.append(check(what, raised, name))
            await sidecar.stop()
            await listener.stop()
        assert not delivery.settled
        await delivery.ack()
        assert len(table) > 300
        assert [said for said in wrong if said is not None] == []


def test_an_option_that_does_not_exist_is_named_with_what_it_is_in(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", unbounded=True)
        with pytest.raises(TypeError, match="there is no option 'retry.atempts'"):
            bridge.consume("ORDERS", "billing", retry={"atempts": 3})  # pyright: ignore[reportArgumentType]
    for publish in ({"ack_wait": 3}, {"breaker": {"ack_wait": 3}}):
        name = ".".join(["publish", *publish]) if "breaker" not in publish else "publish.breaker.ack_wait"
        with pytest.raises(TypeError, match=f"there is no option '{name}'"):
            nats_bridge.connect(server.url, publish=publish)  # pyright: ignore[reportArgumentType]


def test_a_number_that_is_out_of_range_is_told_the_range(server: NatsServer) -> None:
    huge = 10**30
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", unbounded=True)
        for wrong in (-1, 0, 32_769, huge, -huge):
            with pytest.raises(InvalidConfig, match="field=max_messages why=it is 1 to 32768"):
                bridge.consume("ORDERS", "billing", max_messages=wrong)
        with pytest.raises(InvalidConfig, match="field=retry.attempts why=it is 1 to 4294967295"):
            bridge.consume("ORDERS", "billing", retry={"attempts": -1})
        with pytest.raises(InvalidConfig, match="field=retry.first_pause_ms why=it is .* at least 0"):
            bridge.consume("ORDERS", "billing", retry={"first_pause_ms": -1})
        with bridge.consume("ORDERS", "billing") as consumer:
            for wrong in (-1, -huge):
                with pytest.raises(InvalidConfig, match="field=timeout_ms why=it is .* at least 0"):
                    consumer.next(wrong)
        with pytest.raises(InvalidConfig, match="field=duplicate_window_ms"):
            bridge.ensure_stream("OTHER", unbounded=True, duplicate_window_ms=huge)
        for text in ("\ud800", float("nan")):
            with pytest.raises(InvalidConfig, match="field=manifest"):
                bridge.plan(text)  # pyright: ignore[reportArgumentType]
