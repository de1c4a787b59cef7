"""What a machine has, as users say it: "64 cores, 256GiB, 4 NVMe"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vqdistill.config import Budget
from vqdistill.errors import InvalidInput

_WANTED = 'such as "64 cores, 256GiB, 4 NVMe" or "64 cores, 256GiB, 4 NVMe of 3.84TB, 25Gbit/s"'
_SIZE = r"\d+(?:\.\d+)?\s*[KMGT]i?B"
_PARTS = {
    "cores": re.compile(r"(\d{1,5})\s*cores?", re.IGNORECASE),
    "disks": re.compile(rf"(\d{{1,3}})\s*NVMe(?:\s+of\s+({_SIZE}))?", re.IGNORECASE),
    "network": re.compile(r"(\d{1,4}(?:\.\d+)?)\s*Gbit(?:/s)?", re.IGNORECASE),
    "memory": re.compile(rf"({_SIZE})(?:\s+(?:RAM|memory))?", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine of a cluster, all of whose machines are alike."""

    cores: int
    memory_bytes: int
    disks: int
    """NVMe drives."""
    disk_bytes: int = 3_840_000_000_000
    """Of each; a common size."""
    network_bits: float = 10e9
    """A second."""

    @classmethod
    def parse(cls, text: str) -> Machine:
        """Read a machine.

        Raises
        ------
        InvalidInput
            If cores, memory or drives are missing, zero, named twice, or something else is named.
        """
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, match = _part(part.strip(), text)
            if name in found:
                raise InvalidInput(f"machine must name {name} once, {_WANTED}, got {text!r}")
            found[name] = match
        if missing := [name for name in ("cores", "memory", "disks") if name not in found]:
            raise InvalidInput(f"machine must name {', '.join(missing)} too, {_WANTED}, got {text!r}")
        more: dict[str, Any] = {}
        if found["disks"][2] is not None:
            more["disk_bytes"] = _bytes(found["disks"][2])
        if "network" in found:
            more["network_bits"] = float(found["network"][1]) * 1e9
        machine = cls(
            cores=int(found["cores"][1]),
            memory_bytes=_bytes(found["memory"][1]),
            disks=int(found["disks"][1]),
            **more,
        )
        if not all((machine.cores, machine.memory_bytes, machine.disks, machine.disk_bytes, machine.network_bits)):
            raise InvalidInput(f"machine must have some of all that it names, {_WANTED}, got {text!r}")
        return machine


def _part(part: str, text: str) -> tuple[str, re.Match[str]]:
    for name, form in _PARTS.items():
        if match := form.fullmatch(part):
            return name, match
    raise InvalidInput(f"machine must be {_WANTED}, got {part!r} in {text!r}")


def _bytes(size: str) -> int:
    try:
        return Budget.parse(size).ram_bytes or 0
    except InvalidInput:  # no bytes at all
        return 0
