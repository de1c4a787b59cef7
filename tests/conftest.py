"""Settings of the whole suite, and the small data that several tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Two workers train on two cores at once: OpenMP threads that wait in a loop would take the time of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# No deadline: CI machines stall. Derandomized: a red run can be repeated, and a green one stays green.
settings.register_profile("vqdistill", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("vqdistill")
