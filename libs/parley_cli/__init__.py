"""The `parley` command: what a person or a script types.

Owns the composition of all services in one process (`embedded`), the terminal and the words in it. Promises one clear line and an
exit code other than 0 for everything that goes wrong. Never speaks the protocol itself: that is `parley_client`'s.
"""
