"""A mock of an OpenAI-compatible server, in a process of its own, for tests of clients."""

from .behaviour import Behaviour
from .process import MockProcess

__all__ = ["Behaviour", "MockProcess"]
