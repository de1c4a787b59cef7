"""Rates of this code, measured by bench/rates.py and stored with the package: what capacity is planned with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vqdistill.compiler import cost
from vqdistill.config import IvfPqConfig


@dataclass(frozen=True)
class Rates:
    """CPU time of one core for each kind of work; `stored` as bench/rates.py writes it."""

    stored: dict[str, Any]

    @classmethod
    def load(cls) -> Rates:
        """Read those of the package."""
        return cls(json.loads((files("vqdistill.compiler") / "rates.json").read_text(encoding="utf-8")))

    @property
    def origin(self) -> str:
        """Where they were measured."""
        machine = self.stored["machine"]
        return f"{machine['processor']}, {machine['cores']} cores, {machine['cpu_level']}; {self.stored['dataset']}"

    def encode_ns(self, d: int, model: IvfPqConfig, terms: float, shared: float = 0.0) -> float:
        """CPU ns of encoding one row; parameters as for `cost.encode_work`."""
        each: dict[str, float] = self.stored[model.codes]["ns"]
        return sum(each[name] * count for name, count in cost.encode_work(d, model, terms=terms, shared=shared).items())

    @property
    def scanned(self) -> float:
        """Share of the rows that a search of recall 0.95@10 scanned."""
        return float(self.stored["routing"]["share"])
