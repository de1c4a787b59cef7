"""What a report says: runs judged, the best at each recall within each budget, and where rivals win."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.bench import store
from vqdistill.bench.budgets import UNLIMITED
from vqdistill.bench.datasets import open_prepared
from vqdistill.bench.imports import import_results
from vqdistill.bench.scoring import Judge, latency_ms, paired, rate_ratio, score_run
from vqdistill.bench.store import Operation, Run
from vqdistill.errors import InvalidInput

OURS = "vqdistill"


@dataclass(frozen=True)
class Scored:
    """A run with its figures."""

    run: Run
    operations: list[dict[str, Any]]

    @property
    def system(self) -> str:
        """Name."""
        return str(self.run.facts["system"])

    @property
    def budget(self) -> str:
        """Label."""
        return str(self.run.facts["budget"])

    def at(self, target: float) -> tuple[dict[str, Any], Operation] | None:
        """Return the fastest operation of at least this recall on the test queries."""
        reached = [
            (facts, operation)
            for facts, operation in zip(self.operations, self.run.operations, strict=True)
            if facts["metrics"]["recall"]["value"] >= target and facts["queries_per_s"] is not None
        ]
        return max(reached, key=lambda pair: pair[0]["queries_per_s"], default=None)


def summarize(folder: Path, targets: list[float], imported: tuple[str, ...] = ()) -> dict[str, Any]:
    """Judge all runs below a folder.

    Parameters
    ----------
    targets : recalls that the best are looked for at
    imported : "NAME=FILE" of results of other engines; only where there is one dataset

    Returns
    -------
    dict
        JSON-ready: `targets` and `datasets`.

    Raises
    ------
    InvalidInput
        If there is no run, or a file is none.
    """
    places = sorted(path.parent for path in folder.rglob("truth.h5"))
    if not places:
        raise InvalidInput(f"{folder} holds no runs of vqdistill bench")
    if imported and len(places) > 1:
        raise InvalidInput(f"imports need a folder of one dataset, {folder} has {len(places)}")
    return {"targets": targets, "datasets": [_dataset(place, targets, imported) for place in places]}


def _dataset(place: Path, targets: list[float], imported: tuple[str, ...]) -> dict[str, Any]:
    judge = Judge.of(place / "truth.h5")
    dataset = open_prepared(place)
    runs = store.runs_below(place) + [import_results(text, dataset) for text in imported]
    kept = [Scored(run, score_run(run, judge)) for run in runs if not run.refused]
    refused = [{"system": run.facts["system"], "budget": run.facts["budget"], "why": run.refused} for run in runs]
    budgets = sorted({one.budget for one in kept if one.run.facts["bytes"]} - {UNLIMITED}, key=_size)
    best = [_best(kept, budget, target, judge) for budget in budgets for target in targets]
    return {
        "name": dataset.name,
        "n": dataset.n,
        "dim": dataset.dim,
        "origin": dataset.origin,
        "budgets": budgets,
        "runs": [_run_facts(one, dataset.n) for one in kept],
        "refused": [one for one in refused if one["why"]],
        "failed": [json.loads(path.read_text()) for path in sorted(place.glob(f"*{store.FAILED}"))],
        "missing": json.loads((place / "missing.json").read_text()) if (place / "missing.json").exists() else [],
        "best": best,
        "quantizers": list(_quantizers(place)),
        "rival_wins": list(_rival_wins(kept, best)),
        "repeats": list(_repeats(kept)),
    }


def _quantizers(place: Path) -> Iterator[dict[str, Any]]:
    """Yield what bench/quantizers.py left in the folder: recall by code alone, at equal code bytes."""
    kept = ("ram_bytes_per_vector", "candidate_recall", "recall_at_k_codes_only")
    for path in sorted(place.glob("quantizers/*.json")):
        facts = json.loads(path.read_text())
        yield {"codes": facts["quantizer"]} | {name: facts[name] for name in kept}
    for path in sorted(place.glob("quality/*.json")):
        facts = json.loads(path.read_text())
        named = {"learn": "vqdistill", "start": "vqdistill, undistilled"}.get(facts["queries"])
        if named is not None:
            figures = facts["eval_all_lists"]["output"] | facts
            yield {"codes": named} | {name: figures[name] for name in kept}


def _size(budget: str) -> tuple[str, float]:
    digits = "".join(c for c in budget if c.isdigit() or c == ".")
    return budget.lstrip("0123456789."), float(digits or 0)


def _run_facts(one: Scored, n: int) -> dict[str, Any]:
    facts = one.run.facts
    total = sum(facts["bytes"].values()) if facts["bytes"] else None
    yardstick = facts.get("yardstick_s") or []
    memory = dict(facts.get("memory") or {})
    for kind in ("warm", "cold"):
        if kind in memory:
            memory[kind] = (latency_ms(memory[kind]["seconds"]) or {}) | {
                name: value for name, value in memory[kind].items() if name != "seconds"
            }
    kept = {name: facts.get(name) for name in ("system", "budget", "repeat", "seed", "core", "build", "bytes")}
    kept |= {name: facts.get(name) for name in ("machine", "versions", "targets", "tune_s", "imported")}
    return kept | {
        "bytes_total": total,
        "bytes_per_vector": None if total is None else total / n,
        "allowance_bytes": facts.get("allowance_bytes"),
        "memory": memory or None,
        "unrest": max(yardstick) / min(yardstick) if yardstick else None,
        "notes": sorted({one["text"] for op in one.run.operations for one in op.facts["findings"]}),
        "operations": one.operations,
    }


def _first_repeats(kept: list[Scored]) -> list[Scored]:
    return [one for one in kept if not one.run.facts.get("repeat")]


def _best(kept: list[Scored], budget: str, target: float, judge: Judge) -> dict[str, Any]:
    """Return who is fastest at a recall within a budget, and the ratio of ours to the best rival."""
    entries: list[dict[str, Any]] = []
    places: dict[str, Operation] = {}
    for one in _first_repeats(kept):
        if one.budget not in (budget, UNLIMITED):
            continue
        found = one.at(target)
        if found is not None:
            reference = one.budget == UNLIMITED
            entries.append({"system": one.system, "reference": reference} | _short(found[0]))
            places[one.system] = found[1]
    entries.sort(key=lambda entry: -entry["queries_per_s"])
    rivals = [e for e in entries if not e["reference"] and not e["system"].startswith(OURS)]
    references = [e for e in entries if e["reference"]]
    best: dict[str, Any] = {"budget": budget, "target": target, "entries": entries}
    best |= dict.fromkeys(("ratio", "ratio_cpu", "paired"))
    best["measured"] = any(one.system == OURS and one.budget == budget for one in kept)
    best["ours"] = next((e for e in entries if e["system"] == OURS), None)
    best["rival"], best["reference"] = (next(iter(group), None) for group in (rivals, references))
    if best["ours"] and best["rival"]:
        mine, theirs = places[OURS], places[best["rival"]["system"]]
        best["ratio"] = rate_ratio(mine, theirs).facts()
        best["ratio_cpu"] = best["ours"]["queries_per_cpu_s"] / best["rival"]["queries_per_cpu_s"]
        best["paired"] = paired(judge.per_query(mine)["recall"], judge.per_query(theirs)["recall"])
    return best


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    kept = {name: facts[name] for name in ("setting", "queries_per_s", "queries_per_cpu_s", "reads", "latency")}
    return kept | {"recall": facts["metrics"]["recall"]}


def _rival_wins(kept: list[Scored], best: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each place where a rival is ahead of us."""
    for one in best:
        where = f"recall {one['target']:g} within {one['budget']}"
        ours, rival = one["ours"], one["rival"]
        if rival and not ours and one["measured"]:
            yield f"{rival['system']} reaches {where}, vqdistill does not"
        elif rival and ours and rival["queries_per_s"] > ours["queries_per_s"]:
            ratio = rival["queries_per_s"] / ours["queries_per_s"]
            yield f"{rival['system']} answers {ratio:.2f} times the queries/s of vqdistill at {where}"
        reference = one["reference"]
        if reference and ours and reference["queries_per_s"] > ours["queries_per_s"]:
            ratio = reference["queries_per_s"] / ours["queries_per_s"]
            text = f"{reference['system']}, with no bound on memory, answers {ratio:.2f} times the queries/s"
            yield f"{text} at recall {one['target']:g} ({one['budget']} for vqdistill)"
    yield from _other_wins(kept)


def _other_wins(kept: list[Scored]) -> Iterator[str]:
    firsts = _first_repeats(kept)
    for mine in firsts:
        if mine.system != OURS:
            continue
        others = [one for one in firsts if one.budget == mine.budget and not one.system.startswith(OURS)]
        for what, figure, unit in _FIGURES:
            own = figure(mine.run)
            known = [(value, one.system) for one in others if (value := figure(one.run)) is not None]
            ahead = [(value, name) for value, name in known if own is not None and value < own]
            if ahead:
                value, name = min(ahead)
                more = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
                yield f"{name}{more}: less {what} within {mine.budget}, {value:,.3g} {unit} against {own:,.3g}"


def _cap(run: Run) -> float | None:
    memory = run.facts.get("memory") or {}
    value = (memory.get("cap") or {}).get("bytes_above_base")
    return None if value is None else value / 2**20


def _anonymous(run: Run) -> float | None:
    memory = run.facts.get("memory") or {}
    return memory["anonymous_bytes"] / 2**20 if "anonymous_bytes" in memory else None


def _cold(run: Run) -> float | None:
    memory = run.facts.get("memory") or {}
    return latency_ms(memory["cold"]["seconds"])["p50_ms"] if "cold" in memory else None  # type: ignore[index]


_FIGURES = (
    ("build time", lambda run: (run.facts.get("build") or {}).get("seconds"), "s"),
    ("anonymous memory to open", _anonymous, "MiB"),
    ("memory limit that it works under", _cap, "MiB"),
    ("time of a query with a cold page cache (p50)", _cold, "ms"),
)


def _repeats(kept: list[Scored]) -> Iterator[dict[str, Any]]:
    """Yield how later measurements of the same index compare with the first."""
    firsts = {(one.system, one.budget): one for one in _first_repeats(kept)}
    rows = []
    for one in kept:
        first = firsts.get((one.system, one.budget))
        if not one.run.facts.get("repeat") or first is None:
            continue
        for mine, theirs in _same_settings(one, first):
            a, b = one.operations[mine], first.operations[theirs]
            same = bool(np.array_equal(one.run.operations[mine].ids, first.run.operations[theirs].ids))
            change = (a["queries_per_s"] or math.nan) / (b["queries_per_s"] or math.nan)
            named = {"system": one.system, "budget": one.budget, "repeat": one.run.facts["repeat"]}
            rows.append(named | {"target": a["target"], "same_results": same, "queries_per_s_ratio": change})
    middle = float(np.median([row["queries_per_s_ratio"] for row in rows])) if rows else 1.0
    for row in rows:
        yield row | {"ratio_to_all": row["queries_per_s_ratio"] / middle}


def _same_settings(one: Scored, first: Scored) -> Iterator[tuple[int, int]]:
    settings = [op["setting"] for op in first.operations]
    for number, operation in enumerate(one.operations):
        if operation["setting"] in settings:
            yield number, settings.index(operation["setting"])
