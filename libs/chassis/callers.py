"""Who may call a service: the roles in callers' certificates."""

from collections.abc import Iterable
from typing import Any, Final

import grpc
import grpc.aio

from chassis.certificates import roles_of
from chassis.errors import PermissionDenied, Unauthenticated
from chassis.handlers import Admit

# What every service of the same authority may ask of every other.
_FOR_ALL: Final = ("/grpc.health.v1.", "/grpc.reflection.")
_NAMES: Final = "x509_subject_alternative_name"  # gRPC's property of a peer


def admitting(roles: Iterable[str]) -> Admit:
    """Return a check that lets callers of these roles pass. It raises Unauthenticated or PermissionDenied."""
    allowed = frozenset(roles)

    def admit(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        callers = roles_of(name.decode("ascii", "replace") for name in context.auth_context().get(_NAMES, ()))
        if callers & allowed or method.startswith(_FOR_ALL):
            return
        if not callers:
            raise Unauthenticated("CALLER_UNKNOWN", f"{method}: the caller's certificate names no role")
        raise PermissionDenied(
            "CALLER_NOT_ALLOWED", f"{method}: a {'/'.join(sorted(callers))} may not call it, only {', '.join(sorted(allowed))} may"
        )

    return admit
