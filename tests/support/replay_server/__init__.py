"""A server that answers what a fixture says, on a thread of the test's own process."""

from .exchange import Exchange, read_exchanges
from .server import ReplayServer

__all__ = ["Exchange", "ReplayServer", "read_exchanges"]
