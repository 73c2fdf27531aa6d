"""The strategies there are."""

from paretune.strategies.adapter import Adapter
from paretune.strategies.base import Strategy
from paretune.strategies.bias import Bias
from paretune.strategies.lora import Lora
from paretune.strategies.prefix import PrefixStrategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (Lora(), Bias(), Adapter(), PrefixStrategy())
}
"""Strategy by name, in the order in which they are attached."""
