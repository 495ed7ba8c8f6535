"""Judges what devices show of their conversations: in the end it is what their user's inbox says."""

from collections.abc import Iterable, Iterator

from parley.store.v1.rows_pb2 import InboxRow
from parley_simulation.devices import SimulatedDevice
from parley_simulation.store_judge import Tables
from services.store.rows import INBOX


def stories_of_views(devices: Iterable[SimulatedDevice], tables: Tables) -> Iterator[str]:
    """G7, G12: tell of each view that is not as the inbox."""
    for one in devices:
        user, device_id = one.device
        assert one.client is not None
        views = {view.conversation_id: view for view in one.client.conversations()}
        for (table, partition, key), (_, value) in tables.items():
            if (table, partition) != (INBOX, user):
                continue
            inbox, view = InboxRow.FromString(value), views.pop(key.decode(), None)
            if view is None:
                yield f"{device_id} does not know {key.decode()}"
                continue
            told = (view.held_seq, view.head_seq, view.delivered_seq, view.read_seq, view.unread_count)
            true = (inbox.head_seq, inbox.head_seq, inbox.delivered_seq, inbox.read_seq, inbox.unread_count)
            if told != true:
                yield f"{device_id} shows of {key.decode()} (held, head, delivered, read, unread) = {told}, the inbox {true}"
            peer = view.peer_delivered_seq, view.peer_read_seq
            if peer != (inbox.peer_delivered_seq, inbox.peer_read_seq):
                yield f"{device_id} shows of {key.decode()} the peer at {peer}, the inbox {str(inbox).split()}"
        for foreign in views:
            yield f"{device_id} knows {foreign}, which its user's inbox does not"
