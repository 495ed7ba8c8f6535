"""The store: a deterministic function of the log, and the truth about conversations.

Owns conversation states, timelines, dedupe rows and inboxes. Promises that what was accepted is stored exactly once under a
contiguous seq, and that any worker that applies the same log writes the same rows. Never talks to a device.

Reading order: `state` (what is known of a conversation), `decide` and `membership` (the rules), `memory` (what a partition keeps
loaded), `apply` (the two-phase loop), `rows` (how it lies in the tables), `reads` and `rpc` (questions of gateways and routers).
"""
