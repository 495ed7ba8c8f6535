"""What a Consul says that comes back and replays what it had written, until it has come to the end of it."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from own_consul import open_own_consul

from chassis.registry import RegistryUnavailableError
from chassis.registry_consul_http import TRANSACTION_KEYS, ConsulSettings, open_consul_client

pytestmark = pytest.mark.engines("consul")
_CHANGES = 400  # of as many keys as fit; an answer takes a millisecond, and to replay all of it a hundred
_LOOKERS = 4
_LOOK_SECONDS = 0.002  # nobody tells when a Consul answers again


async def test_a_consul_that_comes_back_tells_nothing_before_it_has_replayed_all_that_it_knew(
    tmp_path: Path, engines: EnginesOfTheRun
) -> None:
    """Else gateways would see their slots in the hands of those who held them earlier, and send their devices there."""
    engines.require("consul")
    with ThreadPoolExecutor(1) as starter, open_own_consul(tmp_path) as consul:  # a thread's engine ends with it
        async with open_consul_client(ConsulSettings(address=consul.address)) as client:
            for change in range(_CHANGES):
                value = base64.b64encode(str(change).encode()).decode()
                keys = (f"parley/{number}" for number in range(TRANSACTION_KEYS))
                await client.transact([{"KV": {"Verb": "set", "Key": key, "Value": value}} for key in keys])
            consul.stop()
            seen: set[str] = set()
            latest = asyncio.Event()

            async def look() -> None:
                while not latest.is_set():
                    try:
                        _, entry = await client.kv.get("parley/0")
                    except RegistryUnavailableError:
                        await asyncio.sleep(_LOOK_SECONDS)
                        continue
                    seen.add(entry["Value"].decode() if entry else "")
                    if str(_CHANGES - 1) in seen:
                        latest.set()

            looking = [asyncio.create_task(look()) for _ in range(_LOOKERS)]
            await asyncio.get_running_loop().run_in_executor(starter, consul.start)
            await asyncio.gather(*looking)
            assert seen == {str(_CHANGES - 1)}
