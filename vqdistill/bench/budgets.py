"""Budgets of a benchmark, and the bytes that each lets every system keep in memory."""

from __future__ import annotations

import re

from vqdistill.compiler.passes import plan
from vqdistill.config import Budget
from vqdistill.errors import InvalidInput
from vqdistill.types import Facts

UNLIMITED = "unlimited"
"""Label of the budget of reference systems, which keep what they like."""


def parse_budgets(text: str) -> list[str]:
    """Read "16,24,32B/vec" or "1,2MiB" or both, mixed: a number without a unit takes the next one's.

    Returns
    -------
    list of str
        One label a budget, each as `Budget.parse` reads it.

    Raises
    ------
    InvalidInput
        If a part is no size, or one stands there twice.
    """
    labels: list[str] = []
    unit = ""
    for part in reversed([part.strip() for part in text.split(",")]):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(.*)", part)
        if found is None or not (found[2] or unit):
            raise InvalidInput(f'budgets must be sizes such as "16,32B/vec" or "1,2MiB", got {text!r}')
        unit = found[2] or unit
        label = f"{found[1]}{unit}"
        Budget.parse(label)
        labels.insert(0, label)
    if len(set(labels)) < len(labels):
        raise InvalidInput(f"budgets must differ, got {text!r}")
    return labels


def allowance_bytes(label: str, facts: Facts) -> int:
    """Return what every system may keep in memory under a budget, all that it needs to answer included.

    That is what our index of this budget keeps: `16B/vec` bounds what a vector adds, and codewords and lists come on
    top, so rivals get as many bytes on top too, for longer codes if they like.
    """
    return int(plan(facts, label).ram_bytes)
