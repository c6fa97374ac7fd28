"""The outbox on disk."""

from pathlib import Path

import pytest

import nats_bridge
from nats_bridge import aio
from server import NatsServer


def test_an_outbox_takes_messages_without_nats_and_publishes_them_in_order(server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "orders.outbox"
    with nats_bridge.open_outbox(path, max_entries=5, region="eu") as outbox:
        first = outbox.put("orders.new", b"0", id="o-0", headers={"tenant": ["acme"]})
        assert first.id == "o-0"
        made = outbox.put_many([("orders.new", b"1"), nats_bridge.Message("orders.new", bytearray(b"2"))])
        assert all(one.number > first.number and one.id.startswith("msg_eu_") for one in made)
        status = outbox.status()
        assert (status.waiting, status.refused) == (3, 0)
        assert status.bytes > 0 and status.oldest_ms is not None
        with pytest.raises(nats_bridge.OutboxFull, match="max_entries") as full:
            outbox.put_many([("orders.new", b"x")] * 3)
        assert full.value.is_temporary and full.value.landed == "no"
        with pytest.raises(nats_bridge.InUse):
            nats_bridge.open_outbox(path)
        with pytest.raises(nats_bridge.Timeout):
            outbox.drain(0)
        with nats_bridge.connect(server.url) as bridge:
            bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
            outbox.start(bridge)
            with pytest.raises(nats_bridge.Conflict):
                outbox.start(bridge)
            outbox.drain()
            with bridge.consume("ORDERS", "billing") as deliveries:
                for n in range(3):
                    delivery = deliveries.next(5_000)
                    assert delivery is not None and delivery.payload == b"%d" % n
                    delivery.ack()
    with pytest.raises(nats_bridge.Closed):
        outbox.put("orders.new", b"x")


def test_what_is_refused_is_kept_and_listed(server: NatsServer, tmp_path: Path) -> None:
    with (
        nats_bridge.connect(server.url) as bridge,
        nats_bridge.open_outbox(tmp_path / "a", no_stream_wait_ms=50, first_pause_ms=10, max_pause_ms=50) as outbox,
    ):
        outbox.start(bridge)
        outbox.put("nobody.listens", b"\x00\xff", id="o-1", headers={"tenant": "acme"})
        outbox.put("nobody.hears", b"2")
        outbox.drain(20_000)
        one, other = sorted(outbox.refused(), key=lambda refused: refused.number)
        assert (one.id, one.subject, one.payload, one.reason) == ("o-1", "nobody.listens", b"\x00\xff", "not_found")
        assert [*one.headers] == [("tenant", "acme")] and one.landed == "no" and one.refused_at >= one.put_at
        bridge.ensure_stream("NOBODY", subjects=["nobody.>"], unbounded=True)
        assert outbox.retry(one.number) > other.number
        outbox.discard(other.number)
        with pytest.raises(nats_bridge.NotFound):
            outbox.discard(other.number)
        outbox.drain()
        assert outbox.refused() == []
        with bridge.consume("NOBODY", "n") as deliveries:
            delivery = deliveries.next(5_000)
            assert delivery is not None and delivery.id == "o-1"
            delivery.ack()


def test_wrong_files_and_options_are_named(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("Buy milk.\n" * 1_000)
    with pytest.raises(nats_bridge.Corrupt, match="notes.txt"):
        nats_bridge.open_outbox(foreign)
    with pytest.raises(nats_bridge.DiskError):
        nats_bridge.open_outbox(tmp_path / "no" / "such" / "directory")
    with pytest.raises(nats_bridge.InvalidConfig, match="max_entries"):
        nats_bridge.open_outbox(tmp_path / "a", max_entries=0)
    with pytest.raises(TypeError, match="max_size"):
        nats_bridge.open_outbox(tmp_path / "a", max_size=1)  # pyright: ignore[reportCallIssue]
    with nats_bridge.open_outbox(tmp_path / "a") as outbox:
        with pytest.raises(nats_bridge.InvalidMessage):
            outbox.put("orders.*", b"1")
        with pytest.raises(TypeError, match="payload"):
            outbox.put("orders.new", "text")  # pyright: ignore[reportArgumentType]


async def test_an_outbox_with_asyncio(server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "orders.outbox"
    outbox = await aio.open_outbox(path)
    assert (await outbox.put("orders.new", b"0", id="o-0")).id == "o-0"
    with pytest.raises(nats_bridge.Timeout, match="waiting=1"):
        await outbox.close(0)
    # It is in the file.
    async with aio.connect(server.url) as bridge, aio.open_outbox(path, no_stream_wait_ms=1) as outbox:
        await bridge.ensure_stream("ORDERS", subjects=["orders.>"], max_messages=1, unbounded=True, discard="new")
        await outbox.start(bridge)
        await outbox.drain()
        (full,) = await outbox.put_many([("orders.new", b"1")])
        with pytest.raises(nats_bridge.Timeout):
            await outbox.drain(50)
        assert (outbox.status().waiting, await outbox.refused()) == (1, [])
        with pytest.raises(nats_bridge.NotFound):
            await outbox.retry(full.number)
        with pytest.raises(nats_bridge.NotFound):
            await outbox.discard(full.number)
        await bridge.ensure_stream("ORDERS", subjects=["orders.>"], max_messages=2, unbounded=True, discard="new")
        await outbox.drain(20_000)


def test_an_outbox_that_is_closed_already_is_closed(tmp_path: Path) -> None:
    outbox = nats_bridge.open_outbox(tmp_path / "outbox")
    outbox.put("orders.new", b"one")
    with pytest.raises(nats_bridge.Timeout):
        outbox.close(100)
    outbox.close(100)
    with nats_bridge.open_outbox(tmp_path / "outbox") as again:
        assert again.status().waiting == 1
        with pytest.raises(nats_bridge.Timeout):
            again.close(100)
