"""Keepalive, limits and TLS of gRPC connections: what servers and channels must agree on."""

from pathlib import Path
from typing import Final, NamedTuple

import grpc

from chassis.certificates import Certificates, TlsError

Options = list[tuple[str, int | str]]

SERVER_MAX_RECEIVE_BYTES: Final = 4 * 1024 * 1024  # gRPC's own default: whatever a service takes comes in batches far below
CHANNEL_MAX_RECEIVE_BYTES: Final = 16 * 1024 * 1024  # a page of 200 events with bodies of 16 KiB and more, four times over

# A client pings after 20 s without traffic and gives up after 10 s more: what a service behind is allowed to be gone unnoticed.
CLIENT_KEEPALIVE_MS: Final = 20_000
CLIENT_KEEPALIVE_TIMEOUT_MS: Final = 10_000
# gRPC drops clients that ping more often than every 5 min: ours, and apps that need it (NAT, mobile networks), may every 10 s.
MIN_PING_INTERVAL_MS: Final = 10_000
# Devices show by their own heartbeats that they live. This is for connections without a stream, so it may be slow: a ping costs
# a server of 50,000 connections ~25 us each, and a phone its radio.
SERVER_KEEPALIVE_MS: Final = 300_000
SERVER_KEEPALIVE_TIMEOUT_MS: Final = 20_000
# A connection without a call is an open file that anybody can hold, without a token. Who calls now and then connects anew.
MAX_IDLE_MS: Final = 120_000
HANDSHAKE_TIMEOUT_MS: Final = 10_000  # who connects and says nothing goes after this, not after gRPC's 120 s
MAX_STREAMS_PER_CONNECTION: Final = 1_000  # gateways share one connection to a store; gRPC's default has no bound
# What a client may send ahead of a handler that does not read. As long as gRPC probes the bandwidth that is 4 MB and more, for each
# of a device's streams. 64 KiB are slow from far (640 kB/s at 100 ms) for small messages only: of one whose reader waits gRPC lets
# all the rest come, so it takes two round trips, however large. Clients do probe: what they hold is theirs, and pages are large.
STREAM_WINDOW_BYTES: Final = 65_536
MAX_RECONNECT_BACKOFF_MS: Final = 5_000  # gRPC's 120 s would keep a service away from one that is long back


class TlsRoots(NamedTuple):
    """Whom a client trusts: a PEM file of certificates, or those that gRPC brings."""

    certificates: Path | None = None


class Peer(NamedTuple):
    """Another service, to which a process shows its own certificate, and of which it expects a role."""

    certificates: Certificates
    role: str


class Callers(NamedTuple):
    """A server's own certificate, and the roles of those who may call it."""

    certificates: Certificates
    roles: frozenset[str]


def server_options(max_receive_bytes: int) -> Options:
    """Return a server's channel arguments."""
    return [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),  # not named as its constant in C, MIN_RECV_...
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", SERVER_KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", SERVER_KEEPALIVE_TIMEOUT_MS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not take half of the connections
    ]


def channel_options(max_receive_bytes: int) -> Options:
    """Return a client's channel arguments."""
    return [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.keepalive_time_ms", CLIENT_KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", CLIENT_KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.use_local_subchannel_pool", 1),  # a channel is a connection: two devices in one process share none
        ("grpc.enable_http_proxy", 0),  # proxies cut long streams, and services lie beside each other
    ]


def channel_credentials(tls: TlsRoots) -> grpc.ChannelCredentials:
    """Read a client's trusted certificates. Raises TlsError that names the file."""
    if tls.certificates is None:
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(tls.certificates.read_bytes())
    except OSError as error:
        raise TlsError(f"trusted certificates {tls.certificates} can't be read: {error}") from error
