"""The distributed form on one machine: every service a process of its own, on engines of this machine.

Owns which processes there are, how they are started, told to stop, started again when they end, and where one finds out which they
are. Promises that they end with their supervisor, however that ends, and that Ctrl-C ends all of them in bounded time. Never serves
anything itself, and knows services only by their commands and settings, as a container platform does.
"""
