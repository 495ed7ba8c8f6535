"""What tests of services stand on: virtual time and seeded faults.

Owns an event loop that never waits, a clock whose wall time can be moved, and wrappers that make the ports as bad as their
contracts allow. Promises that equal seeds give equal runs, whatever PYTHONHASHSEED is. Never imported by a service, never
kinder than a real engine, and never worse than a port's contract: a fault outside the contract proves nothing.
"""
