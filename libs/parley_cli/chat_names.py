"""What conversations are called in a chat: by the other one, by a title, or by their id."""

from contextlib import suppress

from parley_cli.rendering import harmless
from parley_client import Client, Conversation, UnknownConversationError
from parley_protocol.ids import direct_conversation_id


class Names:
    """Names the conversations of a user as far as his client knows them."""

    def __init__(self, client: Client, user: str) -> None:
        self._client = client
        self._user = user

    def label(self, conversation: str) -> str:
        """Name it for whoever is in it."""
        with suppress(UnknownConversationError):
            known = self._client.conversation(conversation)
            return self._peer_of(known) or known.title or conversation
        return conversation

    def where(self, conversation: str) -> str:
        """Name it so that /to finds it."""
        with suppress(UnknownConversationError):
            known = self._client.conversation(conversation)
            return self._peer_of(known) or f"“{harmless(known.title)}” ({conversation})"
        return conversation

    def _peer_of(self, known: Conversation) -> str:
        """Return the other of a 1-1 conversation; empty for a group. A conversation with oneself has no other."""
        alone = known.conversation_id == direct_conversation_id(self._user, self._user)
        return self._user if alone else known.peer_user_id
