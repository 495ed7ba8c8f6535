"""The cluster as chaos lays it out: a link on each way between two processes, a clock in each, certificates, and broken ones."""

import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from parley_chaos.broken import BROKEN
from parley_chaos.clocks import Jumper, Preload
from parley_chaos.proxy import Link, open_link
from parley_cluster.topology import GATEWAY, ROUTER, STORE, Topology, certified
from parley_engines.ports import free_ports
from parley_engines.state import Started

if TYPE_CHECKING:
    from parley_chaos.run import Options

_HOST: Final = "127.0.0.1"
_SERVICE: Final = "parley_chaos.service"


@dataclass
class Layout:
    """What is to be run, and what can be broken of it."""

    topology: Topology
    links: dict[str, Link] = field(default_factory=dict)  # by name: to whom, and where each has its own from whom
    clocks: dict[str, Jumper] = field(default_factory=dict)  # by service or engine
    gateways: list[str] = field(default_factory=list)  # where devices connect


async def lay_out(
    options: "Options",
    environ: Mapping[str, str],
    started: Mapping[str, Started],
    preload: Preload,
    notes: Path,
    stack: AsyncExitStack,
) -> Layout:
    """Lay a link before each server that others connect to, and to Consul and the database for each client alone.

    Kafka has none: its clients go where brokers say that they are, and what a link does to them, stopping a broker does.
    """
    links: dict[str, Link] = {}
    clocks: dict[str, Jumper] = dict(preload.engines_clocks)
    own: dict[str, dict[str, str]] = {}
    gateways: list[str] = []

    async def link(name: str, upstream: str) -> str:
        links[name] = await stack.enter_async_context(open_link(name, upstream))
        return links[name].address

    counts = {GATEWAY: options.gateways, STORE: options.stores, ROUTER: options.routers}
    roles = {f"{role}-{number}": role for role, count in counts.items() for number in range(1, count + 1)}
    ports = free_ports(_HOST, [f"{name}{what}" for name in roles for what in ("", "/devices")], random.Random())
    for name, role in roles.items():
        internal = f"{_HOST}:{ports[name]}"
        environ_of_clock, clock = preload.service(name)
        clocks |= clock
        own[name] = {
            **environ_of_clock,
            "CHAOS_ROLE": role,
            "CHAOS_NOTES": str(notes),
            "PARLEY_INTERNAL_LISTEN": internal,
            "PARLEY_INTERNAL_ADVERTISE_ADDRESS": await link(f"to-{name}", internal),
            "PARLEY_CONSUL_ADDRESS": await link(f"{name}-to-consul", started["consul"].address),
        }
        if role == STORE:
            own[name]["PARLEY_CQL_HOSTS"] = await link(f"{name}-to-scylladb", started["scylladb"].address)
        if role == GATEWAY:
            public = f"{_HOST}:{ports[f'{name}/devices']}"
            gateways.append(await link(f"devices-to-{name}", public))
            own[name] |= {"PARLEY_GATEWAY_LISTEN": public, "PARLEY_GATEWAY_ADVERTISE_ADDRESS": gateways[-1]}
    modules = {GATEWAY: _SERVICE}
    if options.broken:
        modules[BROKEN[options.broken].role] = _SERVICE
        for name, role in roles.items():
            if role == BROKEN[options.broken].role:
                own[name]["CHAOS_BROKEN"] = options.broken
    of_role = certified(options.certificates) if options.certificates is not None else {}
    topology = Topology(f"{_HOST}:0", options.gateways, options.stores, options.routers, environ, own, modules, of_role)
    return Layout(topology, links, clocks, gateways)
