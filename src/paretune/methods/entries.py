"""Shared by the methods that select single entries, or whole rows, columns or blocks."""

from collections.abc import Mapping

import numpy as np

from paretune.methods.base import Question
from paretune.plan import Granularity, Selection


def entries(
    question: Question, indices: Mapping[str, np.ndarray], granularity: Granularity = "entries"
) -> tuple[Selection, ...]:
    """Selections from sorted indices by tensor name; empty ones are left out.

    Args:
        question: What was asked; the selections come in the order of its candidates.
        indices: Of entries (flat), or of what the granularity says.
        granularity: What the indices count.
    """
    return tuple(
        Selection(tensor.name, tensor.shape, granularity, indices[tensor.name])
        for tensor in question.candidates
        if len(indices.get(tensor.name, ()))
    )
