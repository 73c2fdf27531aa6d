"""Methods: each turns (model, task, budget) into a plan."""

from paretune.methods.base import Choice, Method, Question
from paretune.methods.choose import choose, make_method
from paretune.methods.rates import learning_rates
from paretune.methods.rechoose import rechoose
from paretune.methods.registry import METHODS

__all__ = ["METHODS", "Choice", "Method", "Question", "choose", "learning_rates", "make_method", "rechoose"]
