"""Masks for several workers: one ranking dealt out in turn, so that the masks are disjoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.errors import PareError
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries
from paretune.selection import Granularity


def deal(
    chosen: Mapping[str, np.ndarray], scores: Mapping[str, Tensor], parts: int
) -> list[dict[str, np.ndarray]]:
    """Deal chosen entries out by falling score: the first to part 0, the second to part 1, and so on.

    Args:
        chosen: By tensor the sorted flat indices of the entries to deal out.
        scores: By tensor the scores of all its entries; equal scores go in the order of ``chosen``.
        parts: How many.

    Returns:
        For each part its sorted flat indices by tensor; together they are ``chosen``, none of it twice, and
        their sizes differ by one at most.
    """
    if not chosen:
        return [{} for _ in range(parts)]
    values = np.concatenate([_at(scores[name], indices) for name, indices in chosen.items()])
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    ends = np.cumsum([len(indices) for indices in chosen.values()])
    ranks = dict(zip(chosen, np.split(rank, ends[:-1]), strict=True))
    dealt: list[dict[str, np.ndarray]] = []
    for part in range(parts):
        mine = {name: indices[ranks[name] % parts == part] for name, indices in chosen.items()}
        dealt.append({name: indices for name, indices in mine.items() if len(indices)})
    return dealt


def _at(scores: Tensor, indices: np.ndarray) -> np.ndarray:
    """The scores of some entries, float64."""
    places = torch.from_numpy(indices).to(scores.device)
    return scores.detach().reshape(-1)[places].double().cpu().numpy()


def dealt_choice(
    question: Question,
    chosen: Mapping[str, np.ndarray],
    scores: Mapping[str, Tensor],
    parts: int,
    notes: dict[str, Any],
    granularity: Granularity = "entries",
) -> Choice:
    """The choice of part 0, and beside it those of all parts in order (none where there is one part).

    Args:
        question: What was asked.
        chosen: The entries of all parts.
        scores: What they were ranked by.
        parts: How many.
        notes: For each; a part's has its number and how many there are.
        granularity: What was chosen; several parts are of entries.
    """
    if parts == 1:
        return Choice(entries(question, chosen, granularity), notes=notes)
    dealt = tuple(
        Choice(entries(question, mine), notes={**notes, "part": [number, parts]})
        for number, mine in enumerate(deal(chosen, scores, parts))
    )
    return replace(dealt[0], others=dealt)


def size_of_all(question: Question, parts: int) -> int:
    """How many entries all parts take together.

    Raises:
        PareError: More than may be selected, or as ``question.k``.
    """
    left = sum(tensor.count for tensor in question.candidates)
    if question.k * parts > left:
        raise PareError(
            f"{parts} disjoint masks of {question.k:,} weights are more than the {left:,} there are to select"
        )
    return question.k * parts
