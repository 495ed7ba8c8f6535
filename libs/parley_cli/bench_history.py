"""`parley bench history`: pages of 50 events from anywhere in conversations of several sizes."""

import asyncio
import time
from array import array
from dataclasses import dataclass
from typing import Any

from parley.api.v1.messaging_service_pb2 import ListEventsRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.bench_messages import MessageLoad, Pair, connect_load
from parley_cli.bench_pacer import arrivals
from parley_cli.bench_reads import CALL_SECONDS, bearer
from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_stream import Fleet, open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError

PAGE_EVENTS = 50
_FILL_WINDOW = 512  # messages under way while a conversation is filled
_MAX_OPEN_CALLS = 200  # two seconds of calls at the usual rate: a server that is further behind has lost


@dataclass(frozen=True)
class HistoryLoad:
    """Conversations of which sizes, how many pages a second, for how long on each."""

    sizes: tuple[int, ...]
    rate: float
    seconds: float


async def measure_history(target: Target, load: HistoryLoad) -> dict[str, Any]:
    """Fill one conversation a size, then read pages of it at a rate; return the figures by size."""
    sizes: dict[str, dict[str, Any]] = {}
    for index, size in enumerate(load.sizes):
        async with open_fleet(target.address, target.token_for) as fleet:
            pair = await _fill(target, fleet, index, size)
            progress(f"{load.rate:g} pages a second for {load.seconds:g} s from {size} events")
            sizes[str(size)] = await _read_pages(target, fleet, pair, size, load)
    return {"offered_per_second": load.rate, "page_events": PAGE_EVENTS, "sizes": sizes}


async def _fill(target: Target, fleet: Fleet, index: int, size: int) -> Pair:
    filling = MessageLoad(pairs=1, window=_FILL_WINDOW, seconds=0.0, receipts=False, most=size)
    running = await connect_load(target, fleet, filling, first_index=index)
    progress(f"filling a conversation with {size} events")
    await running.begin()
    await running.wait_all()
    return running.pairs[0]


async def _read_pages(target: Target, fleet: Fleet, pair: Pair, size: int, load: HistoryLoad) -> dict[str, Any]:
    stub = MessagingServiceStub(fleet.channels[1])
    metadata = bearer(target.token_for(pair.recipient.user_id))
    seconds, gate, begin = array("d"), asyncio.Semaphore(_MAX_OPEN_CALLS), time.monotonic()

    async def read_page(after_seq: int, due: float) -> None:
        async with gate:
            request = ListEventsRequest(conversation_id=pair.conversation_id, after_seq=after_seq, page_size=PAGE_EVENTS)
            page = await stub.ListEvents(request, metadata=metadata, timeout=CALL_SECONDS)
        seconds.append(time.monotonic() - due)
        found = [event.seq for event in page.events]
        wanted = list(range(after_seq + 1, min(after_seq + PAGE_EVENTS, size) + 1))
        if found != wanted:
            raise CommandError(
                f"the page after seq {after_seq} of {size} holds {len(found)} events, not the {len(wanted)} that follow"
            )

    cpu_before = target.meter.cpu_seconds() if target.meter else 0.0
    async with asyncio.TaskGroup() as group:
        async for due in arrivals(load.rate, load.seconds, target.rng):
            group.create_task(read_page(target.rng.randrange(max(1, size - PAGE_EVENTS)), due))
    elapsed = time.monotonic() - begin
    cpu = target.meter.cpu_seconds() - cpu_before if target.meter else None
    return {
        "pages_per_second": round(len(seconds) / elapsed, 1),
        "server_cpu_us_per_page": None if cpu is None else round(cpu / len(seconds) * 1e6, 1),
        "latency_ms": percentiles_ms(seconds),
    }
