"""Shared by the methods that select single entries."""

from collections.abc import Mapping

import numpy as np

from paretune.methods.base import Question
from paretune.plan import Selection


def entries(question: Question, indices: Mapping[str, np.ndarray]) -> tuple[Selection, ...]:
    """Selections of single entries from sorted flat indices by tensor name; empty ones are left out."""
    return tuple(
        Selection(tensor.name, tensor.shape, "entries", indices[tensor.name])
        for tensor in question.candidates
        if len(indices.get(tensor.name, ()))
    )
