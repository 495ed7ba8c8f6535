"""Which processes a cluster on one machine has, with which settings, and in which order they start and drain."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from parley_cluster.supervisor import Spec

GATEWAY, STORE, ROUTER = "gateway", "store", "router"
# Who is read from is there before who reads; devices come last, and go first.
START_ORDER: Final = ((STORE, ROUTER), (GATEWAY,))
# Devices hand over or say goodbye, and what they sent reaches the log; then what is in it is applied and routed as far as it goes.
DRAIN_ORDER: Final = (GATEWAY, STORE, ROUTER)
_OWN_PREFIX: Final = {role: f"PARLEY_{role.upper()}_" for role in (GATEWAY, STORE, ROUTER)}
# Settings of processes that only some of them know; all others are for each.
_PREFIXES: Final = {GATEWAY: ("PARLEY_GATEWAY_",), STORE: ("PARLEY_STORE_", "PARLEY_CQL_"), ROUTER: ("PARLEY_ROUTER_",)}
# Of a few processes on one machine, which are there or back within moments: less patience, and all slots at once. To hand over
# takes a second, then; where Consul is gone, from which a gateway would learn that nobody is left to take them, it waits in vain.
_NEARBY: Final = {
    "PARLEY_GATEWAY_SLOT_SETTLE_SECONDS": "4",
    "PARLEY_GATEWAY_SLOTS_PER_SECOND": "2048",
    "PARLEY_GATEWAY_HANDOVER_SECONDS": "8",
}
_PINS: Final = {"internal": "PARLEY_INTERNAL_LISTEN", "metrics": "PARLEY_METRICS_LISTEN"}


@dataclass(frozen=True)
class Topology:
    """How many of each, and the settings that they share."""

    listen: str = "127.0.0.1:7080"  # of the first gateway; the next ones take the ports after it, or free ones
    gateways: int = 2
    stores: int = 2
    routers: int = 2
    environ: Mapping[str, str] = field(default_factory=dict)  # settings and all else that processes see
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # more settings of single processes, by name
    modules: Mapping[str, str] = field(default_factory=dict)  # what runs instead of a role's own module, by role
    of_role: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # more settings of all processes of a role

    @property
    def listens(self) -> Sequence[str]:
        """Return where the gateways are to listen, one after the other."""
        host, _, port = self.listen.rpartition(":")
        return [f"{host}:{int(port) + number if int(port) else 0}" for number in range(self.gateways)]

    def specs(self, role: str) -> Sequence[Spec]:
        """Return the processes of a role."""
        count = {GATEWAY: self.gateways, STORE: self.stores, ROUTER: self.routers}[role]
        return [self._spec(role, number) for number in range(1, count + 1)]

    def _spec(self, role: str, number: int) -> Spec:
        name = f"{role}-{number}"
        own = {f"{_OWN_PREFIX[role]}INSTANCE_ID": name, "PARLEY_METRICS_LISTEN": "127.0.0.1:0"}
        pins = dict(_PINS)
        if role == GATEWAY:
            own["PARLEY_GATEWAY_LISTEN"] = self.listens[number - 1]
            pins[""] = "PARLEY_GATEWAY_LISTEN"
            own = {name: value for name, value in _NEARBY.items() if name not in self.environ} | own
        else:
            pins[""] = pins.pop("internal")
        command = (sys.executable, "-m", self.modules.get(role, f"services.{role}"))
        shared = dict(_settings_for(role, self.environ)) | own
        return Spec(name, role, command, {**shared, **self.of_role.get(role, {}), **self.own.get(name, {})}, pins)


def _settings_for(role: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what of an environment a role's process gets: no settings that are another role's, which it would refuse."""
    others = tuple(prefix for prefixes in _PREFIXES.values() for prefix in prefixes if prefix not in _PREFIXES[role])
    return ((name, value) for name, value in environ.items() if not name.startswith(others))


def certified(folder: Path) -> dict[str, dict[str, str]]:
    """Return each role's settings for its certificate, of a folder of `parley certs`: its processes trust nobody without."""
    return {
        role: {
            "PARLEY_INTERNAL_TLS_CA_FILE": str(folder / "ca.pem"),
            "PARLEY_INTERNAL_TLS_CERTIFICATE_FILE": str(folder / f"{role}.pem"),
            "PARLEY_INTERNAL_TLS_KEY_FILE": str(folder / f"{role}-key.pem"),
        }
        for role in DRAIN_ORDER
    }
