"""Masks for several workers: one ranking dealt out in turn, so that the masks are disjoint."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


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
