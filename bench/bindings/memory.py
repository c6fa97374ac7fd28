"""What the Python package keeps: memory over many messages, memory and handles over many connections. Ends with 1 when it grows.

usage: memory.py FACE URL MESSAGES CYCLES      FACE: threads, asyncio
"""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable

import nats_bridge
from nats_bridge import Message, aio

FACE, URL = sys.argv[1:3]
MESSAGES, CYCLES = (int(text) for text in sys.argv[3:5])
WINDOW = 1_000
SAMPLES = 20
# What an allocator may keep, and what a leak of 2 bytes a message would be over 10 000 000.
MAY_GROW = 16 << 20
# Files and threads that are made when they are needed first.
MAY_COME = 2
BODY = bytes(128)
STREAM: nats_bridge.StreamOptions = {
    "subjects": ["memory.>"],
    "retention": "work_queue",
    "max_bytes": 256 << 20,
    "duplicate_window_ms": 1_000,
}

Handles = tuple[int, int, int]


def handles() -> Handles:
    """Bytes of memory, open files, threads."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def same(before: Handles, after: Handles) -> bool:
    return after[1] <= before[1] + MAY_COME and after[2] <= before[2] + MAY_COME


def judge(what: str, before: Handles) -> bool:
    # A socket that was closed is let go of a moment later.
    end = time.monotonic() + 5
    while not same(before, after := handles()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    grown = after[0] - before[0]
    flat = grown <= MAY_GROW and same(before, after)
    print(
        f"{what}: {'flat' if flat else 'GROWS'}: memory {grown / 2**20:+.1f} MiB (may: {MAY_GROW >> 20}), "
        f"files {before[1]} -> {after[1]}, threads {before[2]} -> {after[2]}",
        flush=True,
    )
    return flat


async def over_messages(turn: Callable[[list[Message]], Awaitable[None]]) -> bool:
    """Publishes, consumes and acks a window at a time. What is there after a tenth is what is needed."""
    began, turns = time.monotonic(), MESSAGES // WINDOW
    before = None
    for number in range(1, turns + 1):
        await turn([Message("memory.x", BODY, f"{number}-{n}") for n in range(WINDOW)])
        if before is None and number >= turns / 10:
            before = handles()
        if number % max(1, turns // SAMPLES) == 0:
            taken = number * WINDOW
            rate = taken / (time.monotonic() - began)
            print(f"  {FACE} {taken:>10} messages, {handles()[0] / 2**20:7.1f} MiB, {rate:6.0f}/s", flush=True)
    assert before is not None
    return judge(f"{FACE}, {MESSAGES} messages", before)


async def over_cycles(cycle: Callable[[], Awaitable[None]]) -> bool:
    for _ in range(max(20, CYCLES // 10)):
        await cycle()
    before = handles()
    for _ in range(CYCLES):
        await cycle()
    return judge(f"{FACE}, {CYCLES} connections", before)


async def threads() -> bool:
    with nats_bridge.connect(URL) as bridge:
        bridge.ensure_stream("MEMORY", **STREAM)
        with bridge.consume("MEMORY", "memory", max_messages=WINDOW, advisories=False) as deliveries:

            async def turn(some: list[Message]) -> None:
                assert all(outcome.landed == "yes" for outcome in bridge.publish_many(some))
                for n in range(WINDOW):
                    next(deliveries).ack(confirmed=n == WINDOW - 1)

            flat = await over_messages(turn)

    async def cycle() -> None:
        with nats_bridge.connect(URL) as bridge:
            bridge.publish("memory.x", BODY)
            with bridge.consume("MEMORY", "memory", advisories=False) as deliveries:
                next(deliveries).ack()

    return await over_cycles(cycle) and flat


async def with_asyncio() -> bool:
    async with aio.connect(URL) as bridge:
        await bridge.ensure_stream("MEMORY", **STREAM)
        async with bridge.consume("MEMORY", "memory", max_messages=WINDOW, advisories=False) as deliveries:

            async def turn(some: list[Message]) -> None:
                assert all(outcome.landed == "yes" for outcome in await bridge.publish_many(some))
                for n in range(WINDOW):
                    await (await deliveries.next()).ack(confirmed=n == WINDOW - 1)

            flat = await over_messages(turn)

    async def cycle() -> None:
        async with aio.connect(URL) as bridge:
            await bridge.publish("memory.x", BODY)
            async with bridge.consume("MEMORY", "memory", advisories=False) as deliveries:
                await (await deliveries.next()).ack()

    return await over_cycles(cycle) and flat


sys.exit(0 if asyncio.run(threads() if FACE == "threads" else with_asyncio()) else 1)
