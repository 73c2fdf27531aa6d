"""Tuning: attach a plan to a model, train it, detach it."""

from paretune.tuning.attach import Tunable, attach, detach
from paretune.tuning.reselect import Reselection
from paretune.tuning.train import Recipe, Training, train

__all__ = ["Recipe", "Reselection", "Training", "Tunable", "attach", "detach", "train"]
