"""pika, unmodified, through the sidecar inside the process, on a real RabbitMQ and a real nats-server."""

# pika has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pika
import pytest

import nats_bridge
from nats_bridge import Sidecar, SidecarOptions, aio
from rabbit import RabbitMq
from server import WORKSPACE, NatsServer, eventually

KEYS = 8


class Traffic:
    """An application: one thread publishes to eight keys with confirms, another one consumes and acks."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self.published = 0
        self.taken: dict[str, list[int]] = defaultdict(list)
        self.failed: BaseException | None = None
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.exchange_declare("orders", "topic", durable=True)
        channel.queue_declare("billing", durable=True)
        channel.queue_bind("billing", "orders", "order.#")
        connection.close()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._publish, self._consume)]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as raised:
            self.failed = raised

    def _publish(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.confirm_delivery()
        while not self._over.is_set():
            number = self.published
            channel.basic_publish("orders", f"order.{number % KEYS}", str(number).encode(), mandatory=True)
            self.published += 1
        connection.close()

    def _consume(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=20)
        for method, _, body in channel.consume("billing", inactivity_timeout=0.2):
            if method is not None and body is not None:
                self.taken[method.routing_key].append(int(body))
                channel.basic_ack(method.delivery_tag)
            elif self._over.is_set() and self.count >= self.published:
                break
        channel.cancel()
        connection.close()

    @property
    def count(self) -> int:
        """How many were taken."""
        return sum(len(taken) for taken in list(self.taken.values()))

    def goes_on(self, count: int = 40) -> None:
        """Waits until ``count`` more were published and taken."""
        published, taken = self.published, self.count

        def more() -> bool:
            assert self.failed is None, self.failed
            return self.published >= published + count and self.count >= taken + count

        eventually(more, f"{count} more, after {published} published and {taken} taken", 30)

    def finish(self) -> None:
        """Ends it, and checks that each message came once, those of a key in their order."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        assert self.failed is None, self.failed
        for key in range(KEYS):
            assert self.taken[f"order.{key}"] == list(range(key, self.published, KEYS)), key

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()


def test_pika_goes_to_jetstream_and_back_and_nothing_is_lost(server: NatsServer, rabbit: RabbitMq) -> None:
    sidecar = Sidecar(
        rabbit=rabbit.fresh_vhost(),
        nats=server.url,
        rabbit_management=rabbit.management,
        gate_soak_ms=0,
        gate_messages=20,
        gate_latency_factor=1000,
    )
    with sidecar as url, Traffic(url) as traffic:
        traffic.goes_on()
        assert (sidecar.status().phase, sidecar.state) == ("observe", "running")
        with pytest.raises(nats_bridge.ChangeRefused) as refused:
            sidecar.weight(50)
        assert (refused.value.code, refused.value.landed) == ("wrong_phase", "no")
        assert "shadow" in refused.value.context["fix"]

        adopted = sidecar.shadow(by="me", reason="compare")
        assert (adopted.changed, adopted.phase, adopted.by, adopted.reason) == (True, "shadow", "me", "compare")
        traffic.goes_on()
        eventually(lambda: sidecar.gate().may_go_on, "the gate says yes", 40)
        status = sidecar.status()
        (parity,) = status.parity
        assert (parity.queue, parity.counts.differences, parity.samples) == ("billing", 0, [])
        assert parity.counts.matched >= 20 and status.unmapped == []

        for percent, phase in ((50, "canary"), (100, "cutover")):
            assert (sidecar.weight(percent, force=percent == 100, unrehearsed=True).phase, sidecar.status().weight_percent) == (phase, percent)
            traffic.goes_on()
        status = sidecar.status()
        assert status.nats.connected and status.rabbit.connected and status.nats.delivered >= 40
        assert status.faults == nats_bridge.Faults(corrupted=0, dropped=0, reordered=0, duplicated=0)

        back = sidecar.rollback(reason="enough")
        assert (back.phase, back.weight_percent) == ("shadow", 0)
        traffic.goes_on()
        traffic.finish()
        assert [change.weight_percent for change in sidecar.changes()][:3] == [0, 100, 50]
        assert not any(change.automatic for change in sidecar.changes())
    assert sidecar.state == "stopped"


def test_the_gate_says_no_with_reasons_and_a_refusal_is_typed(server: NatsServer, rabbit: RabbitMq) -> None:
    sidecar = Sidecar(rabbit=rabbit.fresh_vhost(), nats=server.url, trust_declared=True).start()
    sidecar.shadow()
    assert sidecar.shadow().changed is False
    verdict = sidecar.gate()
    assert not verdict.may_go_on and {reason.severity for reason in verdict.reasons} <= {"block", "wait", "note"}
    with pytest.raises(nats_bridge.ChangeRefused) as refused:
        sidecar.weight(5)
    assert refused.value.code == "gate"
    against = [reason.code for reason in verdict.reasons if reason.severity != "note"]
    assert set(against) & set(refused.value.context["reasons"].split(","))
    with pytest.raises(nats_bridge.InvalidConfig, match="percent"):
        sidecar.weight(101)
    with pytest.raises(nats_bridge.ChangeRefused) as refused:
        sidecar.detach()
    assert refused.value.code == "wrong_phase"
    sidecar.stop()
    with pytest.raises(nats_bridge.Closed):
        sidecar.shadow()


def test_what_is_wrong_is_a_typed_error_that_names_the_option(server: NatsServer, rabbit: RabbitMq) -> None:
    url = rabbit.fresh_vhost()
    with pytest.raises(nats_bridge.InvalidConfig) as wrong:
        Sidecar(rabbit="http://nowhere", nats=server.url).start()
    assert wrong.value.context["field"] == "rabbit"
    with pytest.raises(nats_bridge.InvalidConfig, match="HOST:PORT") as wrong:
        Sidecar(rabbit=url, nats=server.url, otlp_endpoint="collector:4317").start()
    assert wrong.value.context["field"] == "otlp_endpoint"
    with pytest.raises(TypeError, match="argument 'replicas'"):
        Sidecar(rabbit=url, nats=server.url, replicas="many").start()  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="'weight'"):
        Sidecar(rabbit=url, weight=7)  # pyright: ignore[reportCallIssue]
    with pytest.raises(nats_bridge.Denied, match="RabbitMQ refused user 'nobody'"):
        Sidecar(rabbit=url.replace("guest:guest", "nobody:nothing"), nats=server.url).start()
    with pytest.raises(nats_bridge.Unreachable):
        Sidecar(rabbit=url, nats="nats://127.0.0.1:1", connect={"connect_timeout_ms": 500}).start()
    unstarted = Sidecar(rabbit=url, nats=server.url)
    with pytest.raises(nats_bridge.Closed):
        unstarted.status()


async def test_asyncio_has_the_same_nobody_else_takes_the_account_and_it_is_taken_up_where_it_stands(
    server: NatsServer, rabbit: RabbitMq
) -> None:
    vhost = rabbit.fresh_vhost()
    sidecar = aio.Sidecar(rabbit=vhost, nats=server.url, trust_declared=True)
    async with sidecar as url:
        assert url.startswith("amqp://guest:guest@127.0.0.1:") and url.endswith(vhost.rsplit("/")[-1])
        # They wait for a while, in case the first one is dead.
        others = (aio.Sidecar(rabbit=vhost, nats=server.url), aio.AmqpListener(nats=server.url))
        seconds = asyncio.gather(*(other.start() for other in others), return_exceptions=True)
        traffic = await asyncio.to_thread(Traffic, url)
        with traffic:
            await asyncio.to_thread(traffic.goes_on)
            assert (await sidecar.shadow()).phase == "shadow"
            assert (await sidecar.gate()).may_go_on is False
            assert (await sidecar.weight(50, force=True)).phase == "canary"
            await asyncio.to_thread(traffic.goes_on)
            with pytest.raises(nats_bridge.ChangeRefused):
                await sidecar.weight(60)
            await asyncio.to_thread(traffic.finish)
            forced = (await sidecar.changes())[0]
            assert (forced.forced, forced.weight_percent) == (True, 50)
        for refused in await seconds:
            assert isinstance(refused, nats_bridge.Conflict) and "holder" in refused.context
    again = await aio.Sidecar(rabbit=vhost, nats=server.url).start()
    status = await again.status()
    assert (status.phase, status.weight_percent) == ("canary", 50)
    assert (await again.rollback()).weight_percent == 0
    waits = asyncio.ensure_future(again.wait())
    await again.stop()
    await waits


def backlog(url: str, queue: str, count: int) -> None:
    """Puts messages into a durable queue that nobody consumes."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()
    for number in range(count):
        channel.basic_publish("", queue, str(number).encode(), pika.BasicProperties(delivery_mode=2))
    connection.close()


def test_a_rollback_is_rehearsed_what_is_left_drains_and_the_log_says_who(server: NatsServer, rabbit: RabbitMq) -> None:
    sidecar = Sidecar(rabbit=rabbit.fresh_vhost(), nats=server.url, trust_declared=True)
    with sidecar as url, Traffic(url) as traffic:
        backlog(url, "left", 3)
        sidecar.shadow()
        assert sidecar.rehearsal() is None
        with pytest.raises(nats_bridge.ChangeRefused) as refused:
            sidecar.rehearse()
        assert refused.value.code == "wrong_phase"
        with pytest.raises(nats_bridge.InvalidConfig, match="stay_ms"):
            sidecar.rehearse(stay_ms=1_500)
        sidecar.weight(50, force=True)
        with pytest.raises(nats_bridge.ChangeRefused) as refused:
            sidecar.weight(100, force=True)
        assert refused.value.code == "not_rehearsed"
        rehearsal = sidecar.rehearse(stay_ms=1_000, by="ann", reason="before 100 %")
        assert (rehearsal.passed, rehearsal.problems, rehearsal.running) == (True, [], False)
        assert rehearsal.confirmed > 0 and rehearsal.weight_percent == 50 and rehearsal.by == "ann"
        assert sidecar.rehearsal() == rehearsal == sidecar.status().rehearsal
        assert sidecar.weight(100, force=True, by="bob").phase == "cutover"
        traffic.goes_on()
        traffic.finish()

        seen: list[nats_bridge.Drain] = []
        drain = sidecar.drain(timeout_ms=1_200, progress=seen.append)
        (left,) = drain.queues
        assert (drain.side, drain.drained, drain.left) == ("rabbit", False, 3) and len(seen) >= 2
        assert (left.name, left.ready, left.stuck) == ("left", 3, "not draining: no consumer")
        assert not sidecar.drain(timeout_ms=0).drained
        connection = pika.BlockingConnection(pika.URLParameters(url))
        for method, _, _ in connection.channel().consume("left", auto_ack=True, inactivity_timeout=20):
            assert method is not None
            if method.delivery_tag == 3:
                break
        assert sidecar.drain(timeout_ms=30_000).drained
        connection.close()

        log = sidecar.log()
        done = [(entry.what, entry.outcome, entry.by, entry.reason) for entry in log]
        assert ("rollback rehearse", "done", "ann", "before 100 %") in done
        (up,) = (entry for entry in log if entry.by == "bob")
        assert (up.what, up.outcome, up.weight_percent, up.phase, up.from_) == ("weight 100", "done", 100, "cutover", "")
        assert any(entry.outcome == "refused" and entry.what == "weight 100" for entry in log)
        assert sidecar.log(last=1) == log[:1] and log == sorted(log, key=lambda entry: -entry.number)
        with pytest.raises(nats_bridge.InvalidConfig, match="last"):
            sidecar.log(last=0)


async def test_what_lay_in_rabbitmq_before_shadow_gets_copies_after_a_dry_run(server: NatsServer, rabbit: RabbitMq) -> None:
    sidecar = aio.Sidecar(rabbit=rabbit.fresh_vhost(), nats=server.url, trust_declared=True)
    async with sidecar as url:
        await asyncio.to_thread(backlog, url, "orders", 20)
        await asyncio.to_thread(backlog, url, "other", 2)
        with pytest.raises(nats_bridge.ChangeRefused) as refused:
            await sidecar.backfill()
        assert refused.value.code == "wrong_phase"
        await sidecar.shadow()
        assert await sidecar.backfill_report() is None
        with pytest.raises(nats_bridge.InvalidConfig, match="nothing"):
            await sidecar.backfill("nothing*")
        looked = await sidecar.backfill(dry_run=True)
        held = {queue.name: (queue.held, queue.state, queue.copied) for queue in looked.queues}
        assert looked.dry_run and held == {"orders": (20, "waiting", 0), "other": (2, "waiting", 0)}
        seen: list[nats_bridge.BackfillReport] = []
        report = await sidecar.backfill("ord*", by="ann", reason="before the canary", progress=seen.append)
        (queue,) = report.queues
        assert (report.done, report.error, report.left, report.by) == (True, None, 0, "ann")
        assert (queue.name, queue.state, queue.copied, queue.had) == ("orders", "done", 20, 0)
        assert seen and all(report.running for report in seen)
        again = await sidecar.backfill(["ord*", "oth*"])
        assert {queue.name: (queue.copied, queue.had) for queue in again.queues} == {"orders": (0, 20), "other": (2, 0)}
        assert await sidecar.backfill_report() == again
        progress = (await sidecar.status()).backfill
        assert progress is not None and (progress.copied, progress.had, progress.queues_done) == (2, 20, 2)
        assert [entry.what.split()[0] for entry in await sidecar.log(2)] == ["backfill"] * 2


def test_several_sidecars_share_an_account_and_another_one_leads_when_the_first_stops(
    server: NatsServer, rabbit: RabbitMq
) -> None:
    vhost = rabbit.fresh_vhost()

    def shared(token: str) -> Sidecar:
        return Sidecar(rabbit=vhost, nats=server.url, trust_declared=True, shared=True, http_token=token)

    first, second, stranger = shared("secret"), shared("secret"), shared("another")
    with first, second as url, stranger, Traffic(url) as traffic:
        traffic.goes_on()
        assert second.connections >= 2 and second.status().phase == "observe"
        assert second.shadow(by="ann", reason="from the second").phase == "shadow" == first.status().phase

        def known() -> list[nats_bridge.SidecarStatus]:
            return second.status().sidecars

        eventually(lambda: len(known()) == 3, "all three are known", 20)
        assert [sidecar.leads for sidecar in known()] == [True, False, False]
        assert known()[0].amqp == f"127.0.0.1:{first.address[1]}"
        with pytest.raises(nats_bridge.ChangeRefused) as refused:
            second.weight(5)
        assert refused.value.code == "gate" and refused.value.context["reasons"]
        with pytest.raises(nats_bridge.Denied, match="token"):
            stranger.rollback()
        assert second.weight(50, force=True, unrehearsed=True).weight_percent == 50 == first.status().weight_percent
        traffic.goes_on()
        assert second.rehearse(stay_ms=1_000).passed
        assert second.backfill().done and second.drain(timeout_ms=30_000).drained
        assert {"weight 50", "shadow"} <= {entry.what for entry in second.log()}
        traffic.finish()
        stranger.stop()
        first.stop()
        assert first.state == "stopped"
        with pytest.raises(nats_bridge.Closed):
            first.status()
        with Traffic(url) as more:
            more.goes_on()
            assert (second.status().phase, second.status().weight_percent, second.state) == ("canary", 50, "running")
            assert [sidecar.leads for sidecar in known()][:1] in ([], [True])
            more.finish()
        assert second.rollback().phase == "shadow"


def test_who_does_not_share_is_a_conflict_and_options_of_sharing_need_it(server: NatsServer, rabbit: RabbitMq) -> None:
    vhost = rabbit.fresh_vhost()
    options: list[SidecarOptions] = [{"advertise": "host"}, {"http": "127.0.0.1:0"}, {"http_token": "secret"}]
    for option in options:
        with pytest.raises(nats_bridge.InvalidConfig) as wrong:
            Sidecar(rabbit=vhost, nats=server.url, **option).start()
        assert wrong.value.context["field"] in option
    alone = Sidecar(rabbit=vhost, nats=server.url).start()
    with pytest.raises(nats_bridge.Conflict) as conflict:
        Sidecar(rabbit=vhost, nats=server.url, shared=True).start()
    assert "holder" in conflict.value.context
    alone.stop()
    with Sidecar(rabbit=vhost, nats=server.url, shared=True) as url:
        assert url.startswith("amqp://")
        with pytest.raises(nats_bridge.Conflict):
            Sidecar(rabbit=vhost, nats=server.url).start()


def test_the_code_of_the_readme_that_needs_rabbitmq_runs(server: NatsServer, rabbit: RabbitMq) -> None:
    readme = (WORKSPACE / "bindings" / "python" / "README.md").read_text()
    (code,) = (code for code in readme.split("```python\n")[1:] if ":5672" in code)
    script = code.split("```")[0].replace("nats://127.0.0.1:4222", server.url)
    script = script.replace("amqp://guest:guest@127.0.0.1:5672/%2f", rabbit.fresh_vhost())
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("gate "), ran
