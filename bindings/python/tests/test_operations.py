"""Dead letters, provisioning, health, figures and the ledger."""

from pathlib import Path

import pytest

import nats_bridge
from nats_bridge import Bridge, aio
from server import NatsServer

MANIFEST = """
[[streams]]
name = "ORDERS"
unbounded = true
[[dead_letters]]
of = "ORDERS"
[[consumers]]
stream = "ORDERS"
name = "billing"
[[buckets]]
name = "sessions"
max_bytes = 10_000_000
"""


def letters(bridge: Bridge, count: int) -> None:
    """Makes dead letters of ``count`` messages."""
    bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
    bridge.publish_many(nats_bridge.Message("orders.new", bytes([n, 255]), id=f"o-{n}") for n in range(count))
    with bridge.consume("ORDERS", "billing") as deliveries:
        for _ in range(count):
            delivery = deliveries.next(5_000)
            assert delivery is not None
            delivery.dead_letter(ValueError("no order"), reason="schema")


def test_dead_letters_are_seen_and_stay_where_they_are(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        letters(bridge, 3)
        dead = bridge.dead_letters("ORDERS_DLQ")
        (group,) = dead.list(by="fingerprint")
        assert (group.letters, group.reason, group.detail, group.consumer) == (3, "schema", "no order", "billing")
        assert dead.list(reason="timeout") == []
        assert [letter.payload for letter in dead.peek(2)] == [b"\x00\xff", b"\x01\xff"]
        assert [letter.sequence for letter in dead.peek(sequences=(2, 3), fingerprint=group.key)] == [2, 3]
        letter = dead.show(2)
        assert (letter.subject, letter.stream, letter.stream_sequence) == ("orders.new", "ORDERS", 2)
        assert (letter.headers, letter.attempts, letter.redrives) == ({"Nats-Msg-Id": ["o-1"]}, 1, 0)
        assert letter.stored_at.tzinfo is not None
        assert dead.count() == 3
        with pytest.raises(nats_bridge.NotFound):
            dead.show(17)
        with pytest.raises(nats_bridge.InvalidConfig, match="field=sequence why=it is at least 1"):
            dead.show(0)
        for reversed in ((3, 2), (0, 2)):
            with pytest.raises(nats_bridge.InvalidConfig, match="field=sequences why=the first"):
                dead.peek(sequences=reversed)
        with pytest.raises(nats_bridge.NotFound):
            bridge.dead_letters("NONE_DLQ")
        with pytest.raises(nats_bridge.InvalidConfig, match="by"):
            dead.list(by="colour")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="colour"):
            dead.peek(colour="red")  # pyright: ignore[reportCallIssue]


def test_dead_letters_are_redriven_parked_purged_and_brought_back(server: NatsServer, tmp_path: Path) -> None:
    with nats_bridge.connect(server.url) as bridge:
        letters(bridge, 5)
        dead = bridge.dead_letters("ORDERS_DLQ")
        dry = dead.redrive(dry_run=True)
        assert (dry.redriven, dry.stopped) == (5, None)
        done = dead.redrive(limit=2, rate_per_second=1_000)
        assert (done.redriven, done.failed_again, done.last_sequence) == (2, 0, 2)
        with bridge.consume("ORDERS", "billing") as deliveries:
            delivery = deliveries.next(5_000)
            assert delivery is not None
            assert (delivery.payload, delivery.id) == (b"\x00\xff", "o-0#r1")
            assert delivery.header("Dead-Letter-Redrives") == "1"
            delivery.ack()
        assert dead.park(sequences=(3, 3)) == 1
        assert bridge.dead_letters("ORDERS_DLQ_PARKED").count() == 1
        file = tmp_path / "letters.jsonl"
        assert dead.export(tmp_path / "all.jsonl") == 2
        assert dead.purge(file) == 2
        assert dead.count() == 0
        with pytest.raises(nats_bridge.InvalidConfig, match="file"):
            dead.purge(file)
        back = dead.bring_back(file)
        assert (back.stored, back.duplicates, dead.count()) == (2, 0, 2)
        with pytest.raises(nats_bridge.InvalidConfig, match="max_failed_again"):
            dead.redrive(max_failed_again=7)
        with pytest.raises(nats_bridge.InvalidConfig, match="rate_per_second"):
            dead.redrive(rate_per_second=0)


async def test_dead_letters_with_asyncio(server: NatsServer, tmp_path: Path) -> None:
    with nats_bridge.connect(server.url) as bridge:
        letters(bridge, 3)
    async with aio.connect(server.url) as bridge:
        dead = await bridge.dead_letters("ORDERS_DLQ")
        assert [group.letters for group in await dead.list()] == [3]
        assert (await dead.show(1)).reason == "schema"
        assert len(await dead.peek()) == 3
        assert (await dead.redrive(limit=1, rate_per_second=1_000)).redriven == 1
        assert await dead.park(sequences=(2, 2)) == 1
        assert await dead.export(tmp_path / "all.jsonl") == 1
        assert await dead.purge(tmp_path / "gone.jsonl") == 1
        assert (await dead.bring_back(tmp_path / "gone.jsonl")).stored == 1
        assert await dead.count() == 1
        with pytest.raises(nats_bridge.NotFound):
            await bridge.dead_letters("NONE_DLQ")


def test_a_manifest_is_planned_and_applied(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        plan = bridge.plan(MANIFEST)
        assert [(change.object, change.action) for change in plan.changes] == [
            ("stream ORDERS", "create"),
            ("stream ORDERS_DLQ", "create"),
            ("consumer ORDERS/billing", "create"),
            ("bucket sessions", "create"),
        ]
        assert bridge.apply(MANIFEST).changes == plan.changes
        assert bridge.plan(MANIFEST).changes == []
        (changed,) = bridge.plan(MANIFEST.replace("10_000_000", "20_000_000")).changes
        assert (changed.object, changed.action, changed.fields) == ("bucket sessions", "update", ["max_bytes"])
        wrong = MANIFEST.replace("unbounded = true", 'unbounded = true\nretention = "work_queue"')
        with pytest.raises(nats_bridge.Conflict, match="retention"):
            bridge.apply(wrong)
        with pytest.raises(nats_bridge.InvalidConfig, match="line 2"):
            bridge.plan("\n[[streams]\n")


def test_a_lower_limit_removes_nothing_unless_it_is_allowed_to(server: NatsServer) -> None:
    stream = '[[streams]]\nname = "LOGS"\nsubjects = ["logs.>"]\nunbounded = true\ndiscard = "old"\n'
    with nats_bridge.connect(server.url) as bridge:
        bridge.apply(stream)
        bridge.publish_many([("logs.new", b"one"), ("logs.new", b"two"), ("logs.new", b"three")])
        with pytest.raises(nats_bridge.WouldRemove, match="nothing was changed") as refused:
            bridge.apply(stream + "max_messages = 1\n")
        told = {"stream": "LOGS", "limit": "max_messages", "is": "none", "should": "1", "messages": "2"}
        assert refused.value.context.items() >= told.items()
        assert bridge.plan(stream).changes == []
        (changed,) = bridge.apply(stream + "max_messages = 1\n", allow_removal=True).changes
        assert (changed.fields, "removes about 2 of 3 messages" in changed.cost) == (["max_messages"], True)


async def test_provisioning_and_health_with_asyncio(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        assert len((await bridge.plan(MANIFEST)).changes) == 4
        assert len((await bridge.apply(MANIFEST, allow_removal=True)).changes) == 4
        await bridge.ensure_bucket("sessions", max_bytes=10_000_000)
        check = bridge.health_check(streams=["ORDERS"], consumers=[("ORDERS", "billing")])
        assert (await check.look()).ready
        assert bridge.stats().connected


def test_health_says_what_is_missing_and_how_the_lag_develops(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        bridge.apply(MANIFEST)
        check = bridge.health_check(
            streams=["ORDERS"], consumers=[("ORDERS", "billing")], dead_letters=["ORDERS_DLQ"], max_pending=1
        )
        health = check.look()
        assert (health.ready, health.problems, health.mirrors) == (True, [], [])
        assert (health.consumers[0].pending, health.consumers[0].pending_per_second) == (0, None)
        bridge.publish_many([("orders.new", b"one"), ("orders.new", b"two")])
        health = check.look()
        assert (health.ready, health.consumers[0].pending) == (False, 2)
        assert "2 messages waiting" in health.problems[0]
        assert (health.consumers[0].pending_per_second or 0) > 0
        assert not bridge.health_check(streams=["NOT_THERE"]).look().ready
        with pytest.raises(TypeError, match="'stream'"):
            bridge.health_check(stream=["ORDERS"])  # pyright: ignore[reportCallIssue]


def test_figures_of_the_connection_and_of_the_process(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"breaker": {"trip_after_ms": 100}, "ack_wait_ms": 500, "deadline_ms": 1_000}) as bridge:
        bridge.ensure_stream("ORDERS", unbounded=True)
        bridge.publish("orders.new", b"one")
        stats = bridge.stats()
        assert (stats.connected, stats.connects, stats.disconnects, stats.outstanding) == (True, 1, 0, 0)
        assert (stats.breaker, stats.closed, stats.server_version) == ("closed", False, bridge.server_version)
        assert "natsbridge_connects_total" in nats_bridge.metrics()
        server.stop()
        with pytest.raises(nats_bridge.Timeout):
            bridge.publish("orders.new", b"two")
        with pytest.raises(nats_bridge.BreakerOpen) as raised:
            bridge.publish("orders.new", b"three")
        assert (raised.value.landed, bridge.stats().connected) == ("no", False)


def test_a_ledger_lets_an_effect_happen_once(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        ledger = bridge.ledger("billing-done", keep_ms=60_000, lease_ms=30_000)
        first = ledger.begin("order-1")
        assert (first.state, ledger.begin("order-1").state) == ("first", "elsewhere")
        first.done()
        again = ledger.begin("order-1")
        assert again.state == "done"
        for ended in (first, again):
            with pytest.raises(nats_bridge.InvalidConfig, match="entry"):
                ended.done()
        ledger.begin("order-2").undo()
        assert ledger.begin("order-2").state == "first"
        with pytest.raises(nats_bridge.InvalidMessage):
            ledger.begin("")


async def test_a_ledger_with_asyncio(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        ledger = await bridge.ledger("billing-done", keep_ms=60_000, lease_ms=30_000)
        entry = await ledger.begin("order-1")
        await entry.undo()
        entry = await ledger.begin("order-1")
        await entry.done()
        assert (await ledger.begin("order-1")).state == "done"


def test_schemas_are_registered_compared_and_read(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        schemas = bridge.schemas("SCHEMAS")
        assert schemas.register("order", {"type": "integer", "maximum": 9}, subjects=["orders.>"]) == nats_bridge.Registered(1, False)
        (difference,) = schemas.differences("order", '{"type": "integer", "maximum": 8}')
        assert (difference.path, difference.rule) == ("", "MAXIMUM_DECREASED")
        with pytest.raises(nats_bridge.Conflict) as refused:
            schemas.register("order", {"type": "string"})
        assert refused.value.context["rule"] == "TYPE_CHANGED"
        with pytest.raises(nats_bridge.InvalidConfig, match="protobuf"):
            schemas.register("other", '"string"', format="protobuf")
        schemas.register("item", 'syntax = "proto3"; message Item { int32 n = 1; }', format="protobuf")
        (difference,) = schemas.differences("item", 'syntax = "proto3"; message Item { int64 n = 1; }', format="protobuf")
        assert (difference.path, difference.rule) == ("/Item/n", "FIELD_SAME_TYPE")
        assert schemas.register("count", '"int"', format="avro").version == 1
        (difference,) = schemas.differences("count", '"string"', format="avro")
        assert difference.rule == "TYPE_MISMATCH"
        with pytest.raises(nats_bridge.InvalidConfig, match="compatibility"):
            schemas.set_compatibility("order", "SIDEWAYS")  # pyright: ignore[reportArgumentType]
        schemas.set_compatibility("order", "NONE")
        assert schemas.register("order", {"type": "string"}).version == 2
        found = schemas.get("order")
        assert (found.version, found.schema, found.compatibility, found.subjects) == (2, '{"type": "string"}', "NONE", ["orders.>"])
        assert schemas.names() == ["count", "item", "order"]
        with pytest.raises(nats_bridge.NotFound):
            schemas.get("order", 3)


async def test_schemas_in_asyncio(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        schemas = await bridge.schemas("SCHEMAS")
        assert (await schemas.register("order", True)).version == 1
        assert await schemas.differences("order", True) == []
        await schemas.set_compatibility("order", "FULL")
        assert (await schemas.get("order", 1)).compatibility == "FULL"
        assert await schemas.names() == ["order"]


def test_a_stream_that_stores_no_dead_letters_is_refused_by_name(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
        bridge.publish("orders.new", b"one")
        with pytest.raises(nats_bridge.InvalidConfig, match="no dead letters") as refused:
            bridge.dead_letters("ORDERS").count()
        assert refused.value.context["stream"] == "ORDERS"
