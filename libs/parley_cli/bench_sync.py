"""`parley bench sync`: a device that was away for a moment, with many conversations of which few have changed."""

import asyncio
import time
from array import array
from dataclasses import dataclass
from typing import Any

from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.events_pb2 import Conversation
from parley.api.v1.messaging_service_pb2 import SubmitRequest, SyncRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_cli.bench_reads import CALL_SECONDS, Metadata, bearer
from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_stream import open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError
from parley_protocol.digests import Held, digests_of

_PAGE_CONVERSATIONS = 50  # the SDK's
_LAST_EVENTS = 10  # likewise
_WRITERS = 32  # Submits at the same time
_BODY_BYTES = 100


@dataclass(frozen=True)
class SyncLoad:
    """How many conversations, how many of them change between two syncs, how many syncs of each kind."""

    conversations: int
    changed: int
    rounds: int


class _Device:
    """What a device holds, as far as digests go."""

    def __init__(self, stub: MessagingServiceStub, metadata: Metadata) -> None:
        self.held: dict[str, Held] = {}
        self._stub = stub
        self._metadata = metadata

    async def sync(self) -> tuple[float, int, list[Conversation]]:
        """Sync, by digests if anything is held; return seconds, bytes and rows."""
        request = SyncRequest(page_size=_PAGE_CONVERSATIONS, last_events_count=_LAST_EVENTS)
        if self.held:
            request.digests.extend(digests_of(self.held.values()))
        rows: list[Conversation] = []
        size, begin = 0, time.monotonic()
        while True:
            page = await self._stub.Sync(request, metadata=self._metadata, timeout=CALL_SECONDS)
            size += page.ByteSize()
            rows += page.conversations
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        seconds = time.monotonic() - begin
        for row in rows:
            self.held[row.conversation_id] = _held(row)
        return seconds, size, rows


def _held(row: Conversation) -> Held:
    return Held(
        conversation_id=row.conversation_id,
        seq=row.head_seq,
        delivered_seq=row.delivered_seq,
        read_seq=row.read_seq,
        peer_delivered_seq=row.peer_delivered_seq,
        peer_read_seq=row.peer_read_seq,
        version=row.version,
    )


async def measure_sync(target: Target, load: SyncLoad) -> dict[str, Any]:
    """Sync with nothing changed and with a few conversations changed; return the figures."""
    async with open_fleet(target.address, target.token_for) as fleet:
        stub, rng = MessagingServiceStub(fleet.channels[0]), target.rng
        user_id = target.user("u", 0)
        peers = [target.user("p", index) for index in range(load.conversations)]
        body, gate = rng.randbytes(_BODY_BYTES), asyncio.Semaphore(_WRITERS)

        async def write(peer: str) -> str:
            command = Command(request_id=rng.randbytes(16), to_user_id=user_id, send_message=SendMessage(body=body))
            request = SubmitRequest(device_id="bot", command=command)
            async with gate:
                answer = await stub.Submit(request, metadata=bearer(target.token_for(peer)), timeout=CALL_SECONDS)
            return answer.accepted.conversation_id

        progress(f"{load.conversations} users write to one")
        await asyncio.gather(*(write(peer) for peer in peers))
        device = _Device(stub, bearer(target.token_for(user_id)))
        first_seconds, first_bytes, rows = await device.sync()
        if len(rows) != load.conversations:
            raise CommandError(f"the first Sync brought {len(rows)} of {load.conversations} conversations")
        unchanged, unchanged_bytes = array("d"), 0
        progress(f"{load.rounds} syncs with nothing changed")
        cpu_before = target.meter.cpu_seconds() if target.meter else 0.0
        for _ in range(load.rounds):
            seconds, unchanged_bytes, rows = await device.sync()
            unchanged.append(seconds)
            if rows:
                raise CommandError(f"digests of what was told differ: {len(rows)} conversations came again")
        cpu = target.meter.cpu_seconds() - cpu_before if target.meter else None
        changed, changed_bytes, brought = array("d"), 0, 0
        progress(f"{load.rounds} syncs with {load.changed} of {load.conversations} conversations changed")
        for _ in range(load.rounds):
            written = await asyncio.gather(*(write(peer) for peer in rng.sample(peers, load.changed)))
            seconds, size, rows = await device.sync()
            changed.append(seconds)
            changed_bytes, brought = changed_bytes + size, brought + len(rows)
            if missing := set(written) - {row.conversation_id for row in rows}:
                raise CommandError(f"Sync left out {len(missing)} of {load.changed} changed conversations")
        return {
            "conversations": load.conversations,
            "changed": load.changed,
            "rounds": load.rounds,
            "first": {"ms": round(first_seconds * 1e3, 3), "bytes": first_bytes},
            "unchanged": {
                "latency_ms": percentiles_ms(unchanged),
                "bytes": unchanged_bytes,
                "server_cpu_us_per_sync": None if cpu is None else round(cpu / load.rounds * 1e6, 1),
            },
            "after_changes": {
                "latency_ms": percentiles_ms(changed),
                "bytes": round(changed_bytes / load.rounds),
                "rows": round(brought / load.rounds, 1),
            },
        }
