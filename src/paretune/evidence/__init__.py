"""What gradients at the pretrained weights say about a model and its data."""

from paretune.evidence.collector import Collector
from paretune.evidence.consumers import AbsSum, Consumer, Dots, ExampleEntries, ExampleNorms, SquaredSum, Sum
from paretune.evidence.draw import draw
from paretune.evidence.fisher import Fisher, fisher
from paretune.evidence.passes import evidence_pass
from paretune.evidence.topk import top_k

__all__ = [
    "AbsSum",
    "Collector",
    "Consumer",
    "Dots",
    "ExampleEntries",
    "ExampleNorms",
    "Fisher",
    "SquaredSum",
    "Sum",
    "draw",
    "evidence_pass",
    "fisher",
    "top_k",
]
