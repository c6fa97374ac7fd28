"""Does the scenarios of `tests/scenarios`, whose README says what the steps mean, with threads or with asyncio."""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import nats_bridge
from nats_bridge import (
    ConsumeOptions,
    Error,
    GiveUp,
    Message,
    Published,
    PublishOptions,
    Received,
    RetryPolicy,
    Settled,
    aio,
)
from server import NatsServer

__all__ = ["Scenario", "World"]

T = TypeVar("T")
PATIENCE_MS = 15_000


class Options(TypedDict, total=False):
    subjects: list[str]
    retention: Literal["work_queue"]
    unbounded: bool
    retry: RetryPolicy
    ack_wait_ms: int
    decrypt: str
    accept_unencrypted: bool
    schemas: bool
    accept_without_schema: bool
    single_active: bool


REGISTRY = "SCHEMAS"


class Sent(TypedDict, total=False):
    subject: str
    payload: str
    id: str
    headers: dict[str, list[str]]


class Given(Sent, total=False):
    schema: str


class Step(Sent, total=False):
    schema: str | Mapping[str, object]
    schemas: bool
    do: str
    name: str
    stream: str
    options: Options
    messages: list[Given]
    subjects: list[str]
    count: int
    of: str
    delivery: str
    confirmed: bool
    why: str
    reason: Literal["schema", "expired"]
    delay_ms: int
    budget_ms: int
    by: Literal["reason"]
    sequence: int
    filter: dict[Literal["reason"], str]
    to: str
    dry_run: bool
    concurrency: int
    fail_once: list[str]
    give_up: list[str]
    until: int
    key: str
    encrypt: str
    decrypt: str
    expect: object
    error: object




class Scenario(TypedDict):
    promise: str
    steps: list[Step]


async def done(result: T | Awaitable[T]) -> T:
    """What a call of either face gives."""
    return await result if inspect.isawaitable(result) else result  # pyright: ignore[reportReturnType]


def check(found: object, expected: object, step: Step) -> None:
    """Everything that is expected must be so; what is not named is not looked at."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, wanted in expected.items():  # pyright: ignore[reportUnknownVariableType]
            check(found[name], wanted, step)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), (step, found)  # pyright: ignore[reportUnknownArgumentType]
        for one, wanted in zip(found, expected, strict=True):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            check(one, wanted, step)  # pyright: ignore[reportUnknownArgumentType]
    else:
        assert found == expected, step


def failed(error: Error) -> dict[str, object]:
    return {"code": error.code, "landed": error.landed, "context": dict(error.context)}


def stored(at: Published) -> dict[str, object]:
    return {"stream": at.stream, "sequence": at.sequence, "duplicate": at.duplicate, "id": at.id, "landed": at.landed}


def settled(end: Settled) -> dict[str, object]:
    return {"outcome": end.outcome, "after_ms": end.after_ms, "stream": end.stream, "sequence": end.sequence}


def received(message: Received) -> dict[str, object]:
    return {
        "subject": message.subject,
        "payload": message.payload.decode(),
        "id": message.id,
        "key_id": message.key_id,
        "attempt": message.attempt,
        "sequence": message.sequence,
        "fencing_number": message.fencing_number,
        "headers": message.headers,
    }


class World:
    """A server, a connection of one of the two faces, and what the steps have named."""

    def __init__(self, server: NatsServer, bridge: nats_bridge.Bridge | aio.Bridge, keys: Path) -> None:
        self.server = server
        self.bridge = bridge
        self.keys = keys
        self.connected: list[nats_bridge.Bridge | aio.Bridge] = []
        self.consumers: dict[str, nats_bridge.Consumer | aio.Consumer] = {}
        self.deliveries: dict[str, nats_bridge.Delivery | aio.Delivery] = {}
        self.opened: nats_bridge.Outbox | aio.Outbox | None = None

    async def run(self, scenario: Scenario) -> None:
        for step in scenario["steps"]:
            try:
                found = await self.act(step, str(step.get("as", "")))
            except Error as error:
                assert "error" in step, f"{step}: {error}"
                check(failed(error), step["error"], step)
            else:
                assert "error" not in step, f"{step}: an error was expected, not {found}"
                if "expect" in step:
                    check(found, step["expect"], step)
        for bridge in self.connected:
            await done(bridge.close())

    async def connect(self, encrypt: str | None, schemas: str | None) -> None:
        """Goes on with another connection."""
        keys = None if encrypt is None else self.keys / encrypt
        publish: PublishOptions = {"no_stream_wait_ms": 500, "encrypt": keys, "schemas": schemas}
        if isinstance(self.bridge, aio.Bridge):
            self.bridge = await aio.connect(self.server.url, publish=publish)
        else:
            self.bridge = nats_bridge.connect(self.server.url, publish=publish)
        self.connected.append(self.bridge)

    @property
    def outbox(self) -> nats_bridge.Outbox | aio.Outbox:
        assert self.opened is not None, "the outbox is not open"
        return self.opened

    async def open_outbox(self) -> None:
        path = self.keys / "orders.outbox"
        if isinstance(self.bridge, aio.Bridge):
            self.opened = await aio.open_outbox(path)
        else:
            self.opened = nats_bridge.open_outbox(path)

    async def start_outbox(self) -> None:
        if isinstance(self.bridge, aio.Bridge):
            assert isinstance(self.outbox, aio.Outbox)
            await self.outbox.start(self.bridge)
        else:
            assert isinstance(self.outbox, nats_bridge.Outbox)
            self.outbox.start(self.bridge)

    async def act(self, step: Step, name: str) -> object:
        match step:
            case {"do": "open_outbox"}:
                await self.open_outbox()
            case {"do": "put", "subject": subject, "payload": payload}:
                put = self.outbox.put(subject, payload.encode(), id=step.get("id"), headers=step.get("headers"))
                return asdict(await done(put))
            case {"do": "start_outbox"}:
                await self.start_outbox()
            case {"do": "drain_outbox"}:
                await done(self.outbox.drain(PATIENCE_MS))
            case {"do": "close_outbox"}:
                await done(self.outbox.close(step.get("budget_ms", PATIENCE_MS)))
            case {"do": "stream", "name": stream, "options": options}:
                await done(
                    self.bridge.ensure_stream(
                        stream,
                        subjects=options.get("subjects"),
                        retention=options.get("retention"),
                        unbounded=options.get("unbounded"),
                    )
                )
            case {"do": "key", "of": keys, "key": key}:
                (self.keys / keys).mkdir(exist_ok=True)
                (self.keys / keys / step.get("name", "")).write_text(key)
            case {"do": "connect"}:
                await self.connect(step.get("encrypt"), REGISTRY if "schemas" in step else None)
            case {"do": "register", "name": of}:
                registry = await done(self.bridge.schemas(REGISTRY))
                return asdict(await done(registry.register(of, step.get("schema", ""))))
            case {"do": "publish", "subject": subject, "payload": payload}:
                given = step.get("schema")
                schema = given if isinstance(given, str) else None
                sent = self.bridge.publish(
                    subject, payload.encode(), id=step.get("id"), headers=step.get("headers"), schema=schema
                )
                return stored(await done(sent))
            case {"do": "publish_many", "messages": messages}:
                many = [
                    Message(one.get("subject", ""), one.get("payload", "").encode(), one.get("id"), schema=one.get("schema"))
                    for one in messages
                ]
                outcomes = await done(self.bridge.publish_many(many))
                return [stored(outcome) if isinstance(outcome, Published) else failed(outcome) for outcome in outcomes]
            case {"do": "publish_range", "subjects": subjects, "count": count}:
                many = [Message(subjects[n % len(subjects)], str(n).encode(), f"n-{n}") for n in range(count)]
                assert all(outcome.landed == "yes" for outcome in await done(self.bridge.publish_many(many)))
            case {"do": "consume", "stream": stream, "name": durable, "options": options}:
                consume: ConsumeOptions = {
                    "retry": options.get("retry"),
                    "ack_wait_ms": options.get("ack_wait_ms"),
                    "heartbeat_ms": 500,
                    "single_active": options.get("single_active"),
                }
                if "schemas" in options:
                    consume["schemas"] = REGISTRY
                    consume["accept_without_schema"] = options.get("accept_without_schema")
                if "decrypt" in options:
                    consume["decrypt"] = self.keys / options["decrypt"]
                    consume["accept_unencrypted"] = options.get("accept_unencrypted")
                if isinstance(self.bridge, aio.Bridge):
                    self.consumers[name] = await self.bridge.consume(stream, durable, **consume)
                else:
                    self.consumers[name] = self.bridge.consume(stream, durable, **consume)
            case {"do": "next", "of": of}:
                delivery = await done(self.consumers[of].next(PATIENCE_MS))
                assert delivery is not None, f"{step}: nothing came"
                self.deliveries[name] = delivery
                return received(delivery)
            case {"do": "none", "of": of}:
                assert await done(self.consumers[of].next(100)) is None, step
            case {"do": "collect", "of": of, "expect": expected}:
                seen: list[str] = []
                while sorted(seen) != expected:
                    delivery = await done(self.consumers[of].next(PATIENCE_MS))
                    assert delivery is not None, f"{step}: only {seen}"
                    seen.append(delivery.payload.decode())
                    await done(delivery.ack())
                return sorted(seen)
            case {"do": "ack", "delivery": delivery}:
                return settled(await done(self.deliveries[delivery].ack(confirmed=step.get("confirmed", False))))
            case {"do": "retry", "delivery": delivery, "why": why}:
                return settled(await done(self.deliveries[delivery].retry(why, delay_ms=step.get("delay_ms"))))
            case {"do": "dead_letter", "delivery": delivery, "why": why, "reason": reason}:
                return settled(await done(self.deliveries[delivery].dead_letter(why, reason=reason)))
            case {"do": "run", "of": of}:
                return await self.handle(step, self.consumers[of])
            case {"do": "drain", "of": of}:
                await done(self.consumers[of].drain(step.get("budget_ms", PATIENCE_MS)))
            case {"do": "state", "of": of}:
                return self.consumers[of].state
            case {"do": "kill_server"}:
                self.server.stop()
            case {"do": "start_server"}:
                self.server.start()
            case _:
                return await self.letters(step)
        return None

    async def letters(self, step: Step) -> object:
        letters = await done(self.bridge.dead_letters(step.get("stream", "")))
        reason = step.get("filter", {}).get("reason")
        match step:
            case {"do": "count"}:
                return await done(letters.count())
            case {"do": "groups", "by": by}:
                return [asdict(group) for group in await done(letters.list(by))]
            case {"do": "show", "sequence": sequence}:
                keys = self.keys / step["decrypt"] if "decrypt" in step else None
                letter = await done(letters.show(sequence, decrypt=keys))
                return asdict(letter) | {"payload": letter.payload.decode()}
            case {"do": "letters", "count": count}:
                end = time.monotonic() + PATIENCE_MS / 1000
                while await done(letters.count()) != count:
                    assert time.monotonic() < end, step
                    await asyncio.sleep(0.01)
                return None
            case {"do": "park"}:
                return await done(letters.park(reason=reason))
            case {"do": "redrive"}:
                return asdict(await done(letters.redrive(to=step.get("to"), dry_run=step.get("dry_run", False))))
            case _:
                raise AssertionError(f"no such step: {step}")

    async def handle(self, step: Step, consumer: nats_bridge.Consumer | aio.Consumer) -> dict[str, list[str]]:
        handled: dict[str, list[str]] = {}
        ended = 0
        lock = threading.Lock()
        assert step.get("key") == "subject"

        def work(message: Received) -> None:
            nonlocal ended
            payload = message.payload.decode()
            if payload in step.get("fail_once", []) and message.attempt == 1:
                raise ValueError("not yet")
            with lock:
                ended += 1
                if ended == step.get("until"):
                    consumer.begin_to_drain()
                if payload in step.get("give_up", []):
                    raise GiveUp("never")
                handled.setdefault(message.subject, []).append(payload)

        await done(consumer.run(work, concurrency=step.get("concurrency", 1), key=lambda message: message.subject))
        return handled
