"""The store in memory."""

from tests.objects.support import memory

__all__ = ["memory"]
