"""Plots of a report, as Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from vqdistill.bench.budgets import UNLIMITED

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8c6d1f",
    "#3a86c8",
    "#b5651d",
    "#6a51a3",
    "#808080",
    "#c0392b",
)
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagon", "pentagon")
_RECALLS = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
_STEPS = [step * 10.0**power for power in range(-3, 8) for step in (1, 2, 5)]
_LOG = {"type": "log", "tickvals": _STEPS, "ticktext": [f"{step:,g}" for step in _STEPS]}
"""Axes with a label at 1, 2, 5, 10, ..."""
_WORST_GAP = 2e-4
"""Least distance to full recall that the axis shows."""


@dataclass(frozen=True)
class Plot:
    """A figure with what it shows in words, and the same as a table."""

    name: str
    title: str
    text: str
    """what to see, for those who do not see it"""
    figure: dict[str, Any]
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def plots(dataset: dict[str, Any]) -> list[Plot]:
    """Return the plots of one dataset of a summary; those without data are left out."""
    style = styles(dataset)
    found = [against_bytes(dataset, style)]
    found += [against_rate(dataset, style, budget) for budget in dataset["budgets"]]
    found += [reads(dataset, style), build_time(dataset, style), memories(dataset, style)]
    found += [labels(dataset, style, metric) for metric in ("nDCG@10", "MRR@10")]
    return [plot for plot in found if plot.rows]


def styles(dataset: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a marker for each system, the same in every plot."""
    names = list(dict.fromkeys(run["system"] for run in dataset["runs"]))
    names.sort(key=lambda name: not name.startswith("vqdistill"))
    return {
        name: {"color": _COLOURS[i % len(_COLOURS)], "symbol": _SYMBOLS[(i + i // len(_COLOURS)) % len(_SYMBOLS)]}
        for i, name in enumerate(names)
    }


def against_bytes(dataset: dict[str, Any], style: dict[str, Any]) -> Plot:
    """Recall against bytes a vector, at a fixed speed."""
    speed = fixed_speed(dataset)
    found: dict[str, list[tuple[float, float, str]]] = {}
    for run in _first(dataset):
        fast = [op for op in run["operations"] if (op["queries_per_s"] or 0) >= speed]
        if fast and run["bytes_per_vector"]:
            recall = max(op["metrics"]["recall"]["value"] for op in fast)
            found.setdefault(run["system"], []).append((run["bytes_per_vector"], recall, run["budget"]))
    figure = _lines(found, style, _recall_axis(found, lambda point: point[1]), lambda p: (p[0], _gap(p[1])))
    figure.update_xaxes(title="bytes a vector in memory, all that is needed to answer", **_LOG)
    rows = [(s, b, f"{x:,.1f}", f"{y:.4f}") for s, points in found.items() for x, y, b in sorted(points)]
    return Plot(
        "bytes",
        f"Recall against memory, at {speed:,} queries/s or more",
        f"Best recall@10 of each system at {speed:,} queries/s or more on one core, against what it keeps in memory.",
        figure.to_plotly_json(),
        ("system", "budget", "bytes a vector", "recall@10"),
        rows,
    )


def fixed_speed(dataset: dict[str, Any]) -> int:
    """Return a round number of queries a second that most systems reach at recall 0.9."""
    rates = []
    for run in _first(dataset):
        reached = [op["queries_per_s"] for op in run["operations"] if op["metrics"]["recall"]["value"] >= 0.9]
        rates += [max(rate for rate in reached if rate)] if any(reached) else []
    if not rates:
        return 1
    low = sorted(rates)[len(rates) // 4]
    power = 10 ** math.floor(math.log10(low))
    return int(max(1, power * max(step for step in (1, 2, 5) if step * power <= low)))


def against_rate(dataset: dict[str, Any], style: dict[str, Any], budget: str) -> Plot:
    """Recall against queries a second within one budget; references are dotted."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for run in _first(dataset):
        if run["budget"] in (budget, UNLIMITED):
            for op in run["operations"]:
                if op["queries_per_s"]:
                    point = (op["metrics"]["recall"]["value"], op["queries_per_s"], run["budget"])
                    found.setdefault(run["system"], []).append(point)
    figure = _lines(found, style, None, lambda p: (_gap(p[0]), p[1]))
    figure.update_xaxes(title="recall@10", **_recall_axis(found, lambda point: point[0]))
    figure.update_yaxes(title="queries/s, one core", **_LOG)
    rows = [(s, f"{x:.4f}", f"{y:,.0f}") for s, points in found.items() for x, y, _ in sorted(points)]
    return Plot(
        f"rate-{budget.replace('/', '')}",
        f"Recall against queries/s within {budget}",
        f"Queries/s of one core against recall@10 for every setting measured within {budget}; up and right is better."
        " Systems without a bound on memory are dotted.",
        figure.to_plotly_json(),
        ("system", "recall@10", "queries/s"),
        rows,
    )


def reads(dataset: dict[str, Any], style: dict[str, Any]) -> Plot:
    """Rows read a query against recall."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for run in _first(dataset):
        for op in run["operations"]:
            if op["reads"]:
                point = (op["metrics"]["recall"]["value"], op["reads"], run["budget"])
                found.setdefault(f"{run['system']} {run['budget']}", []).append(point)
    wide = {name: style[name.rpartition(" ")[0]] for name in found}
    figure = _lines(found, wide, None, lambda p: (_gap(p[0]), p[1]))
    figure.update_xaxes(title="recall@10", **_recall_axis(found, lambda point: point[0]))
    figure.update_yaxes(title="rows read a query", **_LOG)
    rows = [(s, f"{x:.4f}", f"{y:,.1f}") for s, points in found.items() for x, y, _ in sorted(points)]
    text = "Rows of the dense vectors read a query against recall@10; down and right is better."
    return Plot("reads", "Reads a query", text, figure.to_plotly_json(), ("index", "recall@10", "rows read"), rows)


def build_time(dataset: dict[str, Any], style: dict[str, Any]) -> Plot:
    """Seconds of a build."""
    found = [(run["system"], run["budget"], run["build"]["seconds"]) for run in _first(dataset) if run.get("build")]
    figure = _bars(found, style, lambda name: name)
    figure.update_yaxes(title="seconds to build", **_LOG)
    rows = [(name, budget, f"{seconds:,.1f}") for name, budget, seconds in found]
    text = "Seconds that building the index took, with all cores given; lower is better."
    return Plot("build", "Build time", text, figure.to_plotly_json(), ("system", "budget", "seconds"), rows)


def memories(dataset: dict[str, Any], style: dict[str, Any]) -> Plot:
    """Predicted bytes, growth of anonymous memory, and the smallest limit."""
    mib = 1 << 20
    found, rows = [], []
    for run in _first(dataset):
        memory = run["memory"]
        if not memory or run["bytes_total"] is None:
            continue
        cap = memory["cap"]["bytes_above_base"]
        three = (run["bytes_total"], memory["anonymous_bytes"], cap)
        name = f"{run['system']} {run['budget']}"
        kinds = ("predicted", "anonymous growth", f"smallest {memory['cap']['kind']}")
        found += [(name, kind, b / mib) for kind, b in zip(kinds, three, strict=True) if b is not None and b > 0]
        rows.append((run["system"], run["budget"], *("none held" if b is None else f"{b / mib:.2f}" for b in three)))
    figure = go.Figure()
    for kind, colour in zip(dict.fromkeys(kind for _, kind, _ in found), _COLOURS, strict=False):
        x, y = zip(*[(name, value) for name, k, value in found if k == kind], strict=True)
        figure.add_bar(x=x, y=y, name=kind, marker={"color": colour})
    figure.update_yaxes(title="MiB", **_LOG)
    text = (
        "Three memories of each index: what it says it keeps, the growth of anonymous memory of a fresh process that"
        " opens it, and the smallest limit above the empty process under which results and p99 hold."
    )
    header = ("system", "budget", "predicted MiB", "anonymous MiB", "smallest limit MiB")
    return Plot("memories", "Three memories", text, figure.to_plotly_json(), header, rows)


def labels(dataset: dict[str, Any], style: dict[str, Any], metric: str) -> Plot:
    """Best value of a metric by labels, of each system and budget."""
    found = []
    for run in _first(dataset):
        values = [op["metrics"][metric] for op in run["operations"] if metric in op["metrics"]]
        if values:
            best = max(values, key=lambda value: float(value["value"]))
            found.append((run["system"], run["budget"], best))
    figure = _bars([(name, budget, value["value"]) for name, budget, value in found], style, lambda name: name)
    figure.update_yaxes(title=metric, rangemode="tozero")
    rows = [(n, b, f"{v['value']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}") for n, b, v in found]
    text = f"{metric} by the labels of the dataset, of the setting of each index where it is highest; higher is better."
    return Plot(metric.lower().replace("@", ""), metric, text, figure.to_plotly_json(), _LABEL_HEADER, rows)


_LABEL_HEADER = ("system", "budget", "value", "95 % interval")


def _first(dataset: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return [run for run in dataset["runs"] if not run["repeat"]]


def _gap(recall: float) -> float:
    """Place of a recall on an axis that stretches what is close to 1."""
    return -math.log10(max(1 - recall, _WORST_GAP))


def _recall_axis(found: dict[str, list[Any]], recall: Callable[[Any], float]) -> dict[str, Any]:
    values = [recall(point) for points in found.values() for point in points] or [0.5]
    low, high = min(_gap(value) for value in values) - 0.1, max(_gap(value) for value in values) + 0.1
    ticks = [r for r in _RECALLS if low <= _gap(r) <= high]
    return {"range": [low, high], "tickvals": [_gap(r) for r in ticks], "ticktext": [f"{r:g}" for r in ticks]}


def _lines(
    found: dict[str, list[tuple[float, float, str]]],
    style: dict[str, Any],
    y_axis: dict[str, Any] | None,
    place: Callable[[tuple[float, float, str]], tuple[float, float]],
) -> go.Figure:
    figure = go.Figure()
    for name, points in found.items():
        ordered = sorted(points)
        x, y = zip(*map(place, ordered), strict=True)
        marker = {"color": style[name]["color"], "symbol": style[name]["symbol"], "size": 8}
        ours = name.startswith("vqdistill")
        dash = "dot" if ordered[0][2] == UNLIMITED else "solid"
        line = {"color": style[name]["color"], "width": 3 if ours else 1.5, "dash": dash}
        shown = [f"{name} ({budget})<br>{a:,.4g}, {b:,.4g}" for a, b, budget in ordered]
        figure.add_scatter(
            x=x, y=y, name=name, mode="lines+markers", marker=marker, line=line, text=shown, hoverinfo="text"
        )
    if y_axis is not None:
        figure.update_yaxes(title="recall@10", **y_axis)
    return figure


def _bars(found: list[tuple[str, str, float]], style: dict[str, Any], label: Callable[[str], str]) -> go.Figure:
    figure = go.Figure()
    patterns = ("", "/", "x", ".", "-", "|")
    for budget, pattern in zip(dict.fromkeys(b for _, b, _ in found), patterns * 2, strict=False):
        names, values = zip(*[(label(name), value) for name, b, value in found if b == budget], strict=True)
        marker = {"color": [style[name]["color"] for name in names], "pattern": {"shape": pattern}}
        figure.add_bar(x=names, y=values, name=budget, marker=marker)
    return figure
