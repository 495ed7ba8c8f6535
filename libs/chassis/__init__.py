"""How a Parley service runs.

Owns lifecycle, servers and channels, configuration, clocks, errors, logs, metrics, and the three ports (EventLog, Timeline,
Registry) with their implementations. Promises ordered start and drain, owned tasks, one error table. Never knows what a
message is: it does not import `parley`.
"""
