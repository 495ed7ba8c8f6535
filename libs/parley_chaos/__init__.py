"""Chaos with real processes: a cluster under load from real clients, seeded faults, and the judge of the contract.

Owns the load, the faults and their proof, the proxies on the links, the clocks that jump, what gateways note of themselves, the
rules that are broken on purpose, and the report. Promises that the same seed draws the same faults, that each fault in a report
really happened, and that whatever it broke, stopped or cut is whole again before it judges and gone when it ends. Never touches a
process or an address that is not its own cluster's.
"""
