"""The methods there are; a new one is a file of its own and one line here."""

from paretune.methods.adapeft import AdaPeft
from paretune.methods.base import Method
from paretune.methods.designed import S4, Adapter, Bias, Designed, Prefix
from paretune.methods.fish import Fish
from paretune.methods.gradient import Gradient
from paretune.methods.ird import Ird
from paretune.methods.lora import Lora
from paretune.methods.magnitude import Magnitude
from paretune.methods.mixture import Mixture
from paretune.methods.random import Random
from paretune.methods.whole_tensors import BitFit, Full, Head, Norm

_ALL: tuple[type[Method], ...] = (
    Full,
    Head,
    BitFit,
    Norm,
    Lora,
    Adapter,
    Prefix,
    Bias,
    Designed,
    S4,
    Random,
    Magnitude,
    Gradient,
    Fish,
    Ird,
    AdaPeft,
    Mixture,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
