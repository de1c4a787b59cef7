"""How commands print what they found: as JSON, or as lines for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import click
import numpy as np


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Print one JSON object, or a line for each value."""
    click.echo(json.dumps(_plain(values), sort_keys=True) if as_json else "\n".join(_lines(_plain(values))))


def _plain(value: Any) -> Any:
    """Turn NumPy values and containers into what JSON has; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {f'{value:.6g}' if isinstance(value, float) else value}"
