"""Settings of the whole suite, and the small data that several tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: CI machines stall. Derandomized: a red run can be repeated, and a green one stays green.
settings.register_profile("vqdistill", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("vqdistill")
