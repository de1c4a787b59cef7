"""What benches compute by themselves; their runs are long and are not tests."""

from __future__ import annotations

import ablate
import guards
import numpy as np
import pytest

from vqdistill.config import LOSSES, SAMPLERS, STAGES
from vqdistill.data.relevance import Relevance

LISTS = Relevance(np.array([0, 3, 3, 5]), np.array([4, 0, 7, 2, 4]), np.array([0.9, 0.5, 0.1, 0.8, 0.7], np.float32))


def test_exchanged_documents_are_others_with_the_scores_of_their_lists() -> None:
    docs, scores = guards.exchange_documents(LISTS, 1000, np.random.default_rng(0))
    assert np.array_equal(scores, LISTS.scores)
    assert docs[0] == docs[4]  # a document that two lists share stays one
    assert len(np.unique(docs)) == 4 and docs.max() < 1000
    assert not np.isin(docs, LISTS.docs).any()


def test_shuffled_scores_stay_in_their_list() -> None:
    rng = np.random.default_rng(0)
    firsts = set()
    for _ in range(20):
        docs, scores = guards.shuffle_scores(LISTS, 8, rng)
        assert np.array_equal(docs, LISTS.docs)
        for begin, end in ((0, 3), (3, 5)):
            assert sorted(scores[begin:end]) == sorted(LISTS.scores[begin:end])
        firsts.add(float(scores[0]))
    assert len(firsts) == 3


def test_every_stage_loss_and_sampler_has_a_run_of_its_own() -> None:
    names = [variant.name for variant in ablate.VARIANTS]
    assert len({variant.stem for variant in ablate.VARIANTS}) == len(names)
    assert {f"without {stage}" for stage in STAGES} | {f"only {stage}" for stage in STAGES} <= set(names)
    assert {v.change.get("loss", "listnet") for v in ablate.VARIANTS} == set(LOSSES)
    assert {v.change.get("sampler", "topk") for v in ablate.VARIANTS} == set(SAMPLERS)


def test_a_table_replaces_only_what_is_between_its_markers() -> None:
    text = f"above\n\n{ablate.BEGIN}\n\nold\n\n{ablate.END}\n\nbelow\n"
    once = ablate.with_block(text, "new")
    assert once == text.replace("old", "new") == ablate.with_block(once, "new")


@pytest.mark.parametrize(
    "text",
    ["", ablate.BEGIN, ablate.END + ablate.BEGIN, 2 * (ablate.BEGIN + ablate.END), ablate.BEGIN + 2 * ablate.END],
)
def test_a_document_without_clear_markers_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="must have one line"):
        ablate.with_block(text, "new")
