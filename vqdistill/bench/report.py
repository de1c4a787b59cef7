"""The report: one page without a network, Markdown, or JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from vqdistill.bench.plots import plots
from vqdistill.bench.summary import summarize
from vqdistill.errors import InvalidInput, VqdistillError

MAX_BYTES = 6_000_000
"""Bytes of a page at most: it is sent by mail and opened on phones."""


def write_report(runs: Path, out: Path, targets: list[float], imported: tuple[str, ...] = ()) -> dict[str, Any]:
    """Judge the runs below a folder and write `out`, whole or not at all.

    Raises
    ------
    InvalidInput
        If there are no runs, or `out` has another suffix than .html, .md or .json.
    VqdistillError
        If the page would be too large, or cannot be written.
    """
    if out.suffix not in RENDERERS:
        raise InvalidInput(f"the report must end in one of {', '.join(RENDERERS)}, got {str(out)!r}")
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"{out.parent} is no folder, so {out} cannot be written")
    summary = summarize(runs, targets, imported)
    data = RENDERERS[out.suffix](summary).encode()
    if len(data) > MAX_BYTES:
        raise VqdistillError(
            f"the report would take {len(data):,} bytes, at most {MAX_BYTES:,} are meant: split {runs}"
        )
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    wins = [text for dataset in summary["datasets"] for text in dataset["rival_wins"]]
    return {"report": str(out), "bytes": len(data), "rival_wins": wins}


def to_json(summary: dict[str, Any]) -> str:
    """Return all figures; what is not a number becomes null."""
    return json.dumps(_finite(summary), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_markdown(summary: dict[str, Any]) -> str:
    """Return the tables."""
    text: str = _environment(escape=False).get_template("report.md.j2").render(summary)
    return text + "\n"


def to_html(summary: dict[str, Any]) -> str:
    """Return the page, with the script of the plots inside."""
    template = _environment(escape=True).get_template("report.html.j2")
    drawn = {number: plots(dataset) for number, dataset in enumerate(summary["datasets"])}
    figures = {f"{n}-{plot.name}": plot.figure for n, found in drawn.items() for plot in found}
    script = Markup(get_plotlyjs().replace("</script", "<\\/script"))
    data = Markup(json.dumps(_finite(figures), default=list).replace("</", "<\\/"))
    page: str = template.render(summary, drawn=drawn, plotly=script, figures=data)
    return page + "\n"


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {".html": to_html, ".md": to_markdown, ".json": to_json}


def _environment(escape: bool) -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("vqdistill.bench"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"mib": _mib, "figures": _figures, "setting": _setting, "interval": _interval, "rate": _rate}
    return found


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.2f}"


def _figures(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _setting(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "-"


def _interval(value: dict[str, float] | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
