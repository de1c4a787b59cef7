"""Certificates and losses as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vqdistill.index.certificate import Certificate, Rung


def certificate_lines(certificate: Certificate | None) -> Iterator[str]:
    """Yield what a certificate says, a line for each rung."""
    if certificate is None:
        yield "certificate: none"
        return
    made = "queries made from the corpus: unproven on real ones" if not certificate.real_queries else "learn queries"
    truth = "exact" if certificate.truth_recall is None else f"from an index of recall {certificate.truth_recall:.4f}"
    stale = "; stale: rows were added or deleted since" if certificate.stale else ""
    yield f"certificate: recall@{certificate.k} on {certificate.queries} reserved {made}; neighbours {truth}{stale}"
    yield from _table(
        ("target", "recall", f"{certificate.level:.0%} interval", "search", "lists", "codes", "rows", "pages"),
        [
            (
                f"{rung.target:g}",
                f"{rung.recall:.4f}",
                f"{rung.low:.4f}..{rung.high:.4f}",
                _search(rung),
                *(f"{number:,.0f}" for number in (rung.lists, rung.codes, rung.rows, rung.pages)),
            )
            for rung in certificate.rungs
        ],
    )


def checked_lines(checked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `check_certificate` found, a line for each rung."""
    real = "" if checked["real_queries"] else " made from the corpus"
    yield (
        f"certified on {checked['certified_on']} queries{real}, measured on {checked['queries']} test queries, k"
        f" {checked['k']}"
    )
    yield from _table(
        ("target", "certified", "interval", "test", "its interval", "inside", "holds", "p50 ms", "p99 ms"),
        [
            (
                f"{rung['target']:g}",
                f"{rung['recall']:.4f}",
                f"{rung['low']:.4f}..{rung['high']:.4f}",
                f"{rung['test_recall']:.4f}",
                f"{rung['test_low']:.4f}..{rung['test_high']:.4f}",
                "yes" if rung["contained"] else "no",
                "yes" if rung["holds"] else "no",
                f"{rung['p50_ms']:.2f}",
                f"{rung['p99_ms']:.2f}",
            )
            for rung in checked["rungs"]
        ],
    )
    yield (
        f"test recall inside the interval at {checked['contained']} of {checked['of']} rungs; equal recall, with the"
        f" doubt of both samples, holds at {checked['hold']}"
    )


def explained_lines(explained: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `explain` found: causes, deciles, suggestions."""
    k, causes = explained["k"], explained["causes"]
    yield (
        f"recall@{k} {explained['recall']:.4f} of {explained['queries']} queries with {_options(explained['setting'])};"
        f" {explained['lost']:,} true neighbours lost, a deficit of {explained['deficit']:.4f}"
    )
    yield from _table(
        ("lost by", "neighbours", "deficit", "share"),
        [
            (name, f"{cause['lost']:,}", f"{cause['deficit']:.4f}", f"{cause['share']:.1%}")
            for name, cause in causes.items()
        ],
    )
    yield "tenths of the queries, hardest first:"
    yield from _table(
        ("queries", "recall", *causes),
        [
            (str(tenth["queries"]), *(f"{tenth[name]:.4f}" for name in ("recall", *causes)))
            for tenth in explained["deciles"]
        ],
    )
    if not explained["suggestions"]:
        yield "no setting would win anything back"
    for suggestion in explained["suggestions"]:
        asked = suggestion.get("setting")
        how = f"search with {_options(asked)}" if asked else f"compile with dense {suggestion['compile']['dense']}"
        yield f"against {suggestion['cause']}: {how}: recall {suggestion['recall']:.4f} (+{suggestion['gains']:.4f})"


def _search(rung: Rung) -> str:
    return _options(rung.options)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items() if value is not None)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
