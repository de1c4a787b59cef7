"""The proof of a finished index: its certificate, and the default search that a wanted recall leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vqdistill.compiler.supervision import DenseTeacher
from vqdistill.config import RecallTarget
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.evaluate.certificate import Provenance, as_verified, certify
from vqdistill.evaluate.ladder import QuerySet
from vqdistill.index.certificate import Certificate, policy_of
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.reader import IndexReader
from vqdistill.types import F32Rows

CERTIFIED_K = 10
"""True neighbours that a certificate counts unless a recall says otherwise; fewer in a smaller corpus."""


@dataclass
class Proof:
    """Measures an index between its writing and its publication; see `IndexWriter.publish`.

    Attributes
    ----------
    timings : list
        After the call: see `evaluate.certificate.certify`.
    """

    tuning: F32Rows
    """(t, d) held-out learn queries, prepared, as they come"""
    reserved: F32Rows
    """(r, d) queries that nothing has seen, likewise"""
    pseudo: bool
    """Whether they were made from the corpus."""
    dense: DenseTeacher
    """Knows the true neighbours."""
    wanted: RecallTarget | None = None
    """Recall of the index's default search; None leaves the defaults as they are."""
    io: str = "auto"
    """How rows are read, see `Searcher`."""
    timings: list[dict[str, float]] = field(default_factory=list, init=False)

    def __call__(self, reader: IndexReader) -> tuple[SearchPolicy, Certificate]:
        """Return the defaults of a search and the certificate of a finished index.

        Raises
        ------
        BudgetInfeasible
            If the wanted recall is not reached.
        """
        k = min(CERTIFIED_K, reader.manifest.n) if self.wanted is None else self.wanted.k
        asked = np.concatenate([self.tuning, self.reserved])
        lists, said = self.dense.teach(as_verified(reader, asked), depth=k)
        truth, many = lists.padded(k)[0], len(self.tuning)
        with self.dense.progress.stage("certificate"):
            certificate, self.timings = certify(
                reader,
                QuerySet(self.tuning, truth[:many]),
                QuerySet(self.reserved, truth[many:]),
                k,
                _provenance(self.pseudo, said),
                threads=self.dense.threads,
                seed=self.dense.seed,
                io=self.io,
            )
        return self._policy(certificate, reader.manifest.search), certificate

    def _policy(self, certificate: Certificate, policy: SearchPolicy) -> SearchPolicy:
        if self.wanted is None:
            return policy
        try:
            return policy_of(certificate.choose(self.wanted.recall, self.wanted.k), policy)
        except InvalidInput as error:
            raise BudgetInfeasible(f"recall {self.wanted} is not reached by this index: {error}") from None


def _provenance(pseudo: bool, said: Mapping[str, Any]) -> Provenance:
    return Provenance(real_queries=not pseudo, truth=said["kind"], truth_recall=said.get("recall"))
