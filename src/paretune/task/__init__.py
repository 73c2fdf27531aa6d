"""Data, loss and metric: what a model is tuned for."""

from paretune.task.models import load_model_from_spec
from paretune.task.task import Task

__all__ = ["Task", "load_model_from_spec"]
