"""paretune: choose which parameters of a pretrained model to fine-tune; train and ship exactly those.

A method turns (model, task, budget) into a plan; a plan turns a model into a tunable model; training turns
that into a delta.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.anatomy import Anatomy, anatomy
    from paretune.budget import Budget
    from paretune.delta import Delta
    from paretune.errors import PareError
    from paretune.methods import METHODS, choose, rechoose
    from paretune.plan import Addition, Plan, Selection
    from paretune.search.tune import tune
    from paretune.task import Task
    from paretune.tuning import Recipe, Reselection, attach, detach, train

# Loaded on first use, so that `import paretune` costs nothing.
_HOMES = {
    "Addition": "paretune.plan",
    "Anatomy": "paretune.anatomy",
    "Budget": "paretune.budget",
    "Delta": "paretune.delta",
    "METHODS": "paretune.methods",
    "PareError": "paretune.errors",
    "Plan": "paretune.plan",
    "Recipe": "paretune.tuning",
    "Reselection": "paretune.tuning",
    "Selection": "paretune.plan",
    "Task": "paretune.task",
    "anatomy": "paretune.anatomy",
    "attach": "paretune.tuning",
    "choose": "paretune.methods",
    "detach": "paretune.tuning",
    "rechoose": "paretune.methods",
    "train": "paretune.tuning",
    "tune": "paretune.search.tune",
}

__all__ = [
    "METHODS",
    "Addition",
    "Anatomy",
    "Budget",
    "Delta",
    "PareError",
    "Plan",
    "Recipe",
    "Reselection",
    "Selection",
    "Task",
    "anatomy",
    "attach",
    "choose",
    "detach",
    "rechoose",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'paretune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
