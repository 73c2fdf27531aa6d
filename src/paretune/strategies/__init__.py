"""Kinds of added modules: LoRA, adapter, prefix, bias; each with its size, exact count, and way back."""

from paretune.strategies.attach import Mixture, attach_additions
from paretune.strategies.base import Attached, Strategy
from paretune.strategies.registry import STRATEGIES

__all__ = ["STRATEGIES", "Attached", "Mixture", "Strategy", "attach_additions"]
