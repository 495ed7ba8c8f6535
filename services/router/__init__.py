"""The router: who gets what, where.

Owns the way from the store's events to the devices' gateways. Promises that every event reaches each recipient's gateway at least
once, or is named to `parley.offline`. Keeps nothing durable: what it holds (members of large groups, owners of slots,
links to gateways) is a cache.

Reading order: `route` (the loop), `recipients` (who), `slots` (whose), `links` (where).
"""
