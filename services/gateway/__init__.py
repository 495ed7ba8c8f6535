"""The devices' door: their streams, and the calls of bots and back ends.

Owns one stream a device, the check of tokens, rates and shapes, and the append to the command log. Promises frames in order,
bounded memory a device, no device slowed by another, a clear goodbye. Never stores a message, decides membership or authorises
a read.
"""
