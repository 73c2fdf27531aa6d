"""The strategies there are."""

from paretune.strategies.base import Strategy
from paretune.strategies.lora import Lora

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (Lora(),)}
"""Strategy by name, in the order in which they are attached."""
