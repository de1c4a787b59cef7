"""Losses between teacher and student lists, as pure tensor functions of one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

HEAD = 10
"""First documents of the teacher that `ranknet` and `margin_at_rank` hold against all others: those that the held-out
queries look for."""
RANK = 100
"""Rank that `margin_at_rank` wants them inside: the candidates that a search verifies by default."""
FLOOR = 0.01
"""Mass that `reverse_kl` gives to documents without a teacher score, where there are any; their divergence would be
infinite without."""


@dataclass(frozen=True)
class Lists:
    """Documents of some queries, as teacher and student score them.

    Losses do not change with a constant added to all scores of a query, of either side: student scores leave out what
    all documents of a query share. Each query has a document with a teacher score.
    """

    teacher: Tensor
    """(q, l) scores; -inf: no score, the document is only known not to be among the listed ones"""
    student: Tensor
    """(q, l) scores; any value where `real` is False"""
    real: Tensor
    """(q, l) bool, False for places that take no part"""
    teacher_temperature: float | Tensor
    """Divides teacher scores: a number, or (q, 1)."""
    temperature: float | Tensor
    """Divides student scores, likewise."""
    weight: Tensor | None = None
    """(q, l) documents of the corpus that a place stands for, at least 1; None: 1 each"""

    @property
    def scored(self) -> Tensor:
        """(q, l) bool, documents with a teacher score."""
        return self.real & self.teacher.isfinite()

    @property
    def target(self) -> Tensor:
        """(q, l) teacher distribution: rows sum to 1, 0 without a score."""
        scores = self.teacher.masked_fill(~self.real, -torch.inf)
        return torch.softmax(self._weighted(scores / self.teacher_temperature), dim=1)

    @property
    def logits(self) -> Tensor:
        """(q, l) student scores over the temperature, -inf where not real."""
        return self._weighted(self.student / self.temperature).masked_fill(~self.real, -torch.inf)

    @property
    def weights(self) -> Tensor:
        """(q, l) `weight` as a tensor in any case."""
        return torch.ones_like(self.student) if self.weight is None else self.weight

    @property
    def ranking(self) -> Tensor:
        """(q, l) teacher scores over the temperature; 1 below the least of them without a score, -inf if not real."""
        scores = self.teacher / self.teacher_temperature
        least = scores.masked_fill(~self.scored, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(self.scored, scores, least - 1).masked_fill(~self.real, -torch.inf)

    def _weighted(self, logits: Tensor) -> Tensor:
        return logits if self.weight is None else logits + self.weight.log()


Loss = Callable[[Lists], Tensor]
"""Lists -> scalar, the mean over queries; differentiable in `Lists.student`."""


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of softmax(logits) under target, both (q, l), mean over queries. Logits may be -inf at target 0."""
    log_student = torch.log_softmax(logits, dim=1)
    return -(target * log_student.masked_fill(target == 0, 0.0)).sum(dim=1).mean()


def listnet(lists: Lists) -> Tensor:
    """Cross-entropy of the student's list distribution under the teacher's.

    References
    ----------
    Cao et al.: Learning to rank: from pairwise approach to listwise approach, ICML 2007 (ListNet).
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.3: the best of the similarity functions compared there.
    """
    return cross_entropy(lists.target, lists.logits)


def kl(lists: Lists) -> Tensor:
    """KL(teacher || student): `listnet` less the teacher's entropy, so 0 where they agree; the gradient is the same.

    References
    ----------
    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015.
    """
    target = lists.target
    return listnet(lists) + torch.xlogy(target, target).sum(dim=1).mean()


def reverse_kl(lists: Lists) -> Tensor:
    """KL(student || teacher): no student mass where the teacher has little, rather than some wherever it has much.

    References
    ----------
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.3 (its KL).
    Minka: Divergence measures and message passing, 2005, section 2: forward covers modes, reverse seeks one.
    """
    unscored = lists.weights * (lists.real & ~lists.scored)
    count = unscored.sum(dim=1, keepdim=True)
    target = lists.target * torch.where(count > 0, 1 - FLOOR, 1) + unscored * (FLOOR / count.clamp(min=1))
    log_student = torch.log_softmax(lists.logits, dim=1)
    log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
    return (log_student.exp() * (log_student - log_target).masked_fill(~lists.real, 0.0)).sum(dim=1).mean()


def mse(lists: Lists) -> Tensor:
    """Mean squared difference of scores over their temperatures, each side less its mean over the scored documents.

    References
    ----------
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.3 (MSE), up to the offset, which rankings do not have.
    """
    weight = lists.weights * lists.scored
    total = weight.sum(dim=1, keepdim=True)
    gap = _gap(lists)
    mean = (weight * gap).sum(dim=1, keepdim=True) / total
    return (weight * (gap - mean).square() / total).sum(dim=1).mean()


def margin_mse(lists: Lists) -> Tensor:
    """Mean squared difference of margins: the score of the teacher's first document less that of each other scored one.

    References
    ----------
    Hofstaetter et al.: Improving efficient neural ranking models with cross-architecture knowledge distillation, 2020.
    """
    first = lists.ranking.argmax(dim=1, keepdim=True)
    weight = (lists.weights * lists.scored).scatter(1, first, 0.0)
    gap = _gap(lists)
    squares = (gap.gather(1, first) - gap).square()
    return (weight * squares / weight.sum(dim=1, keepdim=True).clamp(min=1)).sum(dim=1).mean()


def ranknet(lists: Lists) -> Tensor:
    """Logistic loss of the order of pairs, weighted by the teacher's margin: its first HEAD documents against all.

    All pairs of a list of 1,300 documents would be 1.7 million a query. Documents without a teacher score rank one
    temperature below the least of those that have one.

    References
    ----------
    Burges et al.: Learning to rank using gradient descent, ICML 2005.
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.3 (RankNet, weighted).
    """
    ranking, student = lists.ranking, lists.student / lists.temperature
    best, head = ranking.topk(min(HEAD, ranking.shape[1]), dim=1)
    margins = (best[:, :, None] - ranking[:, None]).clamp(min=0)
    margins = margins.masked_fill(~(lists.scored.gather(1, head)[:, :, None] & lists.real[:, None]), 0.0)
    margins = margins * lists.weights[:, None]
    errors = softplus(student[:, None] - student.gather(1, head)[:, :, None])
    total = margins.sum(dim=(1, 2)).clamp(min=torch.finfo(student.dtype).tiny)
    return ((margins * errors.masked_fill(margins == 0, 0.0)).sum(dim=(1, 2)) / total).mean()


def infonce(lists: Lists) -> Tensor:
    """Contrastive: each positive alone against all other documents, the other positives left out.

    Positives are the documents that the teacher ties at its best score: its first, or those with the best label.

    References
    ----------
    van den Oord, Li, Vinyals: Representation learning with contrastive predictive coding, 2018.
    Xiao et al.: Matching-oriented product quantization for ad-hoc retrieval (MoPQ), EMNLP 2021.
    Xiao et al.: Progressively optimized bi-granular document representation (BiDR), WWW 2022.
    """
    logits, ranking = lists.logits, lists.ranking
    positive = ranking == ranking.amax(dim=1, keepdim=True)
    others = logits.masked_fill(positive, -torch.inf).logsumexp(dim=1, keepdim=True)
    errors = softplus(others - logits.masked_fill(~positive, 0.0)).masked_fill(~positive, 0.0)
    return (errors.sum(dim=1) / positive.sum(dim=1)).mean()


def wasserstein(lists: Lists) -> Tensor:
    """1-Wasserstein distance of the two list distributions, on a line where the teacher's order places the documents.

    A document stands at log2(1 + number of documents that the teacher scores higher), so that moving mass near the top
    is dear, and inside a tie, such as a grade of relevance, free. The transport moves mass between documents, unlike
    that between sorted scores (Wasserstein-2 of two samples), which forgets which document holds a score, and unlike
    that between Gaussians fitted to a batch of lists (SyCL), which forgets the list.

    References
    ----------
    Peyre, Cuturi: Computational optimal transport, 2019, remark 2.30: in one dimension, the area between cumulatives.
    Esfandiarpoor et al.: Beyond contrastive learning (SyCL), EMNLP Findings 2025: Wasserstein for graded relevance.
    """
    ranking, order = lists.ranking.sort(dim=1, descending=True, stable=True)
    weights = lists.weights.gather(1, order)
    ahead = weights.cumsum(dim=1) - weights
    ahead[:, 1:].masked_fill_(ranking[:, 1:] == ranking[:, :-1], 0.0)
    position = (1 + ahead.cummax(dim=1).values).log2()
    surplus = torch.softmax(lists.logits, dim=1) - lists.target
    carried = surplus.gather(1, order).cumsum(dim=1)[:, :-1].abs()
    return (carried * position.diff(dim=1)).sum(dim=1).mean()


def margin_at_rank(lists: Lists) -> Tensor:
    """Hinge of the teacher's first HEAD documents against the student's score at rank RANK, a temperature to spare.

    An index must only get the right documents inside the candidates that it verifies; their order there is nobody's
    concern. Documents count by their weight, so that with debiased sampling the rank is one in the corpus.

    References
    ----------
    Boyd et al.: Accuracy at the top, NIPS 2012: a hinge against the score at a quantile.
    """
    student = (lists.student / lists.temperature).masked_fill(~lists.real, -torch.inf)
    falling, order = student.sort(dim=1, descending=True)
    inside = lists.weights.masked_fill(~lists.real, 0.0).gather(1, order).cumsum(dim=1) < RANK
    bar = falling.gather(1, inside.sum(dim=1, keepdim=True).clamp(max=student.shape[1] - 1))
    bar = bar.masked_fill(inside.all(dim=1, keepdim=True), -torch.inf)
    _, head = lists.ranking.topk(min(HEAD, student.shape[1]), dim=1)
    wanted = lists.scored.gather(1, head)
    errors = (1 + bar - student.gather(1, head).masked_fill(~wanted, 0.0)).clamp(min=0).masked_fill(~wanted, 0.0)
    return (errors.sum(dim=1) / wanted.sum(dim=1)).mean()


LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (listnet, kl, reverse_kl, mse, margin_mse, ranknet, infonce, wasserstein, margin_at_rank)
}
"""Losses by the name that DistillConfig.loss takes."""

COMPARING = frozenset({"mse", "margin_mse"})
"""Losses that compare scores of several documents, and so learn nothing of a teacher that scores one a query."""


def _gap(lists: Lists) -> Tensor:
    """(q, l) student less teacher score, each over its temperature; 0 without a teacher score."""
    teacher = lists.teacher.masked_fill(~lists.scored, 0.0) / lists.teacher_temperature
    return (lists.student / lists.temperature - teacher).masked_fill(~lists.scored, 0.0)
