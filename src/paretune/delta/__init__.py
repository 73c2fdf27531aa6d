"""Deltas: what training changed, as a small file, and on a model."""

from paretune.delta.apply import Applied, applied_to
from paretune.delta.contents import Values
from paretune.delta.delta import Delta
from paretune.delta.estimate import delta_bytes

__all__ = ["Applied", "Delta", "Values", "applied_to", "delta_bytes"]
