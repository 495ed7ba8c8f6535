"""What goes wrong with engines and is nobody's bug."""


class EngineError(Exception):
    """An engine could not be had, started or stopped; the message says why and what to do."""
