"""Talking to Consul: py-consul's requests over one aiohttp session, with deadlines, and two kinds of failure."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import aiohttp
from consul import base
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.addresses import is_address
from chassis.certificates import TlsError
from chassis.registry import RegistryUnavailableError

REQUEST_SECONDS: Final = 3.0  # a healthy Consul answers within milliseconds; a leader's election takes about as long as this
# How long a blocking query blocks when nothing changes: also, with the deadline on top, how long a connection that died silently
# keeps a watch blind.
WAIT_SECONDS: Final = 10
_WAIT_JITTER: Final = 1 + 1 / 16  # Consul spreads its answers by that much
TRANSACTION_KEYS: Final = 64  # Consul's own bound in the versions that we meet; newer ones take 128


class ConsulSettings(BaseSettings):
    """How Consul is reached: PARLEY_CONSUL_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PARLEY_CONSUL_", frozen=True)

    address: str = Field("127.0.0.1:8500", description="The HTTP(S) API of the Consul agent of this machine.")
    prefix: str = Field(
        "parley",
        pattern=r"^[a-z0-9]([a-z0-9/-]*[a-z0-9])?$",
        description="Keys begin with it and a slash, names of services with it and a dash.",
    )
    token_file: Path | None = Field(None, description="An ACL token, where Consul asks for one.")
    tls_ca_file: Path | None = Field(None, description="PEM: whom to trust as Consul. Given: HTTPS, else HTTP.")
    tls_certificate_file: Path | None = Field(None, description="PEM: what this process shows to Consul; with tls_key_file.")
    tls_key_file: Path | None = Field(None, description="PEM.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if not is_address(self.address):
            problems.append(f"ADDRESS {self.address} is not host:port")
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            problems.append("TLS_CERTIFICATE_FILE and TLS_KEY_FILE belong together")
        elif self.tls_certificate_file is not None and self.tls_ca_file is None:
            problems.append("TLS_CERTIFICATE_FILE needs TLS_CA_FILE")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ConsulRefusedError(RegistryUnavailableError):
    """Consul knows no such token, or the token may not do that."""


class Outcome(NamedTuple):
    """What a transaction came to: the keys as they are now, or why operations failed, by their place."""

    entries: Sequence[Mapping[str, Any]]
    failures: Mapping[int, str]


class _Http(base.HTTPClient):
    """The transport under py-consul's API. Its own one for asyncio knows no deadline for most requests."""

    def __init__(self, settings: ConsulSettings, session: aiohttp.ClientSession) -> None:
        host, _, port = settings.address.rpartition(":")
        super().__init__(host, int(port), "http" if settings.tls_ca_file is None else "https")
        self._where = f"Consul at {self.base_uri}"
        self._session = session

    async def _request(
        self, method: str, callback: Callable[[base.Response], Any], path: str, params: Any, headers: Any, data: str | bytes | None
    ) -> Any:
        waits = any(name == "wait" for name, _ in params or ())
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS + (WAIT_SECONDS * _WAIT_JITTER if waits else 0))
        try:
            async with self._session.request(
                method, self.uri(path, params), headers=headers, data=data, timeout=timeout
            ) as response:
                answer = base.Response(response.status, response.headers, await response.text("utf-8"))
        except TimeoutError as error:
            raise RegistryUnavailableError(f"{self._where} does not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryUnavailableError(f"{self._where} can't be reached: {error}") from error
        if answer.code == 403 or (answer.code == 409 and "Permission denied" in answer.body):  # 409: of a transaction's operations
            raise ConsulRefusedError(f"{self._where} refuses {method} {path}: {_first_line(answer.body)}")
        if answer.code >= 500 or answer.code in (400, 401, 429):
            raise RegistryUnavailableError(f"{self._where} answers {answer.code} to {method} {path}: {_first_line(answer.body)}")
        return callback(answer)

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, raw: bool = False, **_: Any) -> Any:
        return self._request("GET", callback, path, params, headers, None)

    def put(self, callback: Any, path: str, params: Any = None, data: str | bytes = "", headers: Any = None, **_: Any) -> Any:
        return self._request("PUT", callback, path, params, headers, data)

    def delete(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        return self._request("DELETE", callback, path, params, headers, None)

    def post(self, callback: Any, path: str, params: Any = None, data: str = "", headers: Any = None, **_: Any) -> Any:
        return self._request("POST", callback, path, params, headers, data)

    async def close(self) -> None:
        """Leave it open: the session is closed by who opened it."""


class ConsulClient(base.Consul):
    """py-consul's API; every request ends within its deadline. Raises RegistryUnavailableError, ConsulRefusedError.

    Reads are consistent: a server that was the leader until a moment ago, or came back and still replays its log, would tell
    what was.
    """

    def __init__(self, http: _Http, token: str) -> None:
        self._http = http
        super().__init__(host=http.host, port=http.port, scheme=http.scheme, verify=True, consistency="consistent")
        self.token = token or None  # py-consul would prefer one of the environment

    def http_connect(self, host: str, port: int, scheme: str, verify: bool | str = True, cert: Any = None) -> _Http:
        return self._http

    async def transact(self, operations: Sequence[Mapping[str, Any]]) -> Outcome:
        """Run up to TRANSACTION_KEYS operations on keys, all or none of them."""

        def read(response: base.Response) -> Outcome:
            answer = json.loads(response.body)
            failures = {failure["OpIndex"]: failure["What"] for failure in answer.get("Errors") or ()}
            return Outcome([result["KV"] for result in answer.get("Results") or ()], failures)

        answer: Outcome = await self.http.put(read, "/v1/txn", data=json.dumps(list(operations)), headers=self.prepare_headers())
        return answer


@asynccontextmanager
async def open_consul_client(settings: ConsulSettings) -> AsyncIterator[ConsulClient]:
    """Hold connections to Consul, made when they are needed. Raises TlsError that names the files, OSError for the token's."""
    token = "" if settings.token_file is None else settings.token_file.read_text().strip()
    connector = aiohttp.TCPConnector() if settings.tls_ca_file is None else aiohttp.TCPConnector(ssl=_tls_context(settings))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield ConsulClient(_Http(settings, session), token)


def _tls_context(settings: ConsulSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_certificate_file is not None:
            context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        files = [settings.tls_ca_file, settings.tls_certificate_file, settings.tls_key_file]
        raise TlsError(f"{', '.join(str(file) for file in files if file)} can't be used for Consul: {error}") from error
    return context


def _first_line(body: str) -> str:
    return body.strip().splitlines()[0][:200] if body.strip() else "(nothing)"
