"""Who is here: sessions by user, and calls that wait for an outcome."""

import asyncio
from typing import Final

from services.gateway.session import Session

_NOBODY: Final[tuple[Session, ...]] = ()


class Directory:
    """Sessions that said Hello. `by_user` is read in the delivery loop; a tuple a user is the leanest thing to walk."""

    def __init__(self) -> None:
        self.by_user: dict[str, tuple[Session, ...]] = {}
        self.waiting: dict[str, asyncio.Future[bytes]] = {}  # by session_id of the call; its outcome's encoded fields

    def add(self, session: Session) -> Session | None:
        """Add a session; return the one of the same device, which it replaces."""
        others = self.by_user.get(session.user_id, _NOBODY)
        replaced = next((other for other in others if other.device_id == session.device_id), None)
        self.by_user[session.user_id] = (*(other for other in others if other is not replaced), session)
        return replaced

    def remove(self, session: Session) -> bool:
        """Remove this very session; return whether it was there."""
        sessions = self.by_user.get(session.user_id, _NOBODY)
        left = tuple(other for other in sessions if other is not session)
        if left:
            self.by_user[session.user_id] = left
        else:
            self.by_user.pop(session.user_id, None)
        return len(left) < len(sessions)

    def count_of(self, user_id: str) -> int:
        """Return how many devices of a user are here."""
        return len(self.by_user.get(user_id, _NOBODY))
