"""What both ends of the public protocol must compute alike: ids, digests, limits.

Pure: no I/O, no clock, no service. docs/client.md states the same for clients in other languages.
"""
