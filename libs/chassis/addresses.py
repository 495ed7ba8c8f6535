"""Addresses as settings hold them: `host:port`."""

from ipaddress import ip_address


def is_address(text: str) -> bool:
    """Tell whether a text is `host:port` (or `[v6]:port`)."""
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and int(port) <= 0xFFFF


def is_loopback(address: str) -> bool:
    """Tell whether `host:port` (or `[v6]:port`, or several, separated by commas) can be reached from this machine only."""
    if "," in address:
        return all(map(is_loopback, address.split(",")))
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name: who knows


def is_unspecified(address: str) -> bool:
    """Tell whether `host:port` means every address of a machine: nothing that another machine could connect to."""
    try:
        return ip_address(address.rpartition(":")[0].strip("[]")).is_unspecified
    except ValueError:
        return False
