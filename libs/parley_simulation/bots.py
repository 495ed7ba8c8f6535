"""Bots: they send by `Submit`, one message after the other, and repeat what got no answer until it gets one."""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

import grpc

from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.messaging_service_pb2 import SubmitRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_checker.history import Answered, Device, asked_of
from parley_protocol.ids import direct_conversation_id
from parley_simulation.devices import TOKEN_SECONDS, Crowd
from parley_simulation.network import Endpoint
from parley_simulation.processes import Incarnation, Simulation
from services.gateway.keys import mint_token

CALL_SECONDS = 15.0  # beyond what a gateway waits for an outcome
# What says nothing about the command: it may be stored, or not, or not yet.
_PASSES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}


class Bot:
    """One device of a user that knows no stream. What it has asked for outlives its process."""

    def __init__(
        self, simulation: Simulation, crowd: Crowd, device: Device, gateways: Mapping[str, Endpoint], key: Any, messages: int
    ) -> None:
        self.device = device
        self.idle = asyncio.Event()
        self._simulation = simulation
        self._crowd = crowd
        self._gateways = gateways
        self._token = mint_token(key, device.user_id, device.device_id, TOKEN_SECONDS, simulation.clock.wall_ms() / 1000)
        self._left = messages
        self._rng = Random(f"{simulation.seed}/{device.device_id}")
        self._pending: Command | None = None
        self._facts = crowd.history.device(*device)

    async def run(self, process: Incarnation) -> None:
        """Be the bot's process."""
        while self._left or self._pending is not None:
            if self._pending is None:
                self._left -= 1
                self._pending = self._compose()
            if await self._submit(process, self._pending):
                self._pending = None
            await asyncio.sleep(self._rng.uniform(0.0, 10.0))
        self.idle.set()
        await asyncio.Event().wait()

    def _compose(self) -> Command:
        peer, user = self._rng.choice(self._crowd.users), self.device.user_id
        conversation_id = direct_conversation_id(user, peer)
        self._crowd.directs[conversation_id] = (user, peer)
        body = SendMessage(body=f"{self.device} {self._left}".encode())
        command = Command(request_id=self._rng.randbytes(16), to_user_id=peer, send_message=body)
        self._facts.take(asked_of(command, conversation_id))
        self._note(f"submits {command.request_id.hex()} in {conversation_id}")
        return command

    async def _submit(self, process: Incarnation, command: Command) -> bool:
        """Ask any gateway; tell whether the outcome is known."""
        link = self._simulation.faults.stream(f"link of {process.name}")
        endpoint = self._rng.choice(list(self._gateways.values()))
        metadata = (("authorization", f"Bearer {self._token}"),)
        request = SubmitRequest(device_id=self.device.device_id, command=command)
        try:
            async with endpoint.connect(process.name, link, keepalive=True) as channel:
                response = await MessagingServiceStub(channel).Submit(request, metadata=metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSES:
                raise
            return False
        process.life.require_alive()
        accepted = response.accepted
        self._facts.take(Answered(command.request_id, accepted.conversation_id, accepted.seq))
        self._note(f"is told of {command.request_id.hex()}: seq {accepted.seq}")
        return True

    def _note(self, what: str) -> None:
        self._simulation.trace.note(self.device.device_id, what)
