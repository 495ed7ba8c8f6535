"""The whole system on virtual time, under seeded faults: worlds, devices that use the SDK, and rules to break on purpose.

Owns the simulated processes, network and workloads. Promises that equal seeds give equal traces in every process, and that a run
either ends with a verdict or tells what broke. Never waits for a real clock or opens a socket; only `runs` starts processes, to use
all cores.
"""
