"""What competes for a budget: parts of the model's own weights, and modules that could be added to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from paretune.anatomy import Anatomy, Tensor
from paretune.errors import PareError, near
from paretune.plan import Addition
from paretune.strategies import STRATEGIES
from paretune.strategies.lora import carries_lora

__all__ = ["Item", "Level", "Part", "added_items", "native_items", "rivals"]

Level = Literal["type", "block-kind", "tensor", "rows"]
ADDABLE = ("lora", "adapter", "prefix")


@dataclass(frozen=True)
class Part:
    """All of a tensor, or some of its rows (first, one after the last)."""

    tensor: Tensor
    rows: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """How many weights."""
        if self.rows is None:
            return self.tensor.count
        return (self.rows[1] - self.rows[0]) * (self.tensor.count // self.tensor.shape[0])


@dataclass(frozen=True)
class Item:
    """Something that is taken whole or not at all.

    Attributes:
        name: What tables call it.
        kind: The kind of its weights, or the strategy that it adds.
        role: What it is within its block, the same in every block; the tensor's name outside the blocks.
        depth: Where in the model it is, 0 (first block) to 1 (last); None outside the blocks and where it
            spans several.
        part: "encoder" or "decoder", None outside the blocks.
        count: How many weights it has.
        parts: Existing weights.
        addition: Or an added module.
    """

    name: str
    kind: str
    role: str
    depth: float | None
    part: str | None
    count: int
    parts: tuple[Part, ...] = ()
    addition: Addition | None = None


def native_items(parts: Anatomy, candidates: Sequence[Tensor], level: Level, row_blocks: int) -> list[Item]:
    """Existing weights as items.

    Args:
        parts: The model's anatomy.
        candidates: The tensors that may be selected.
        level: "type": all tensors of a kind (AdaPEFT's own groups). "block-kind": those of one block; outside
            the blocks, of one kind. "tensor": each by itself. "rows": each matrix in blocks of rows.
        row_blocks: Into how many blocks of rows a matrix is cut.

    Raises:
        PareError: There is no such level.
    """
    if level not in get_args(Level):
        raise PareError(
            f"items {level!r}: there are {', '.join(get_args(Level))}{near(level, get_args(Level))}"
        )
    groups: dict[str, list[Tensor]] = {}
    for tensor in candidates:
        groups.setdefault(_group(tensor, level), []).append(tensor)
    items = []
    for name, tensors in groups.items():
        for pieces, label in _cut(tensors, level, row_blocks):
            items.append(_native(parts, name + label, pieces, level))
    return items


def _group(tensor: Tensor, level: Level) -> str:
    if level == "type":
        return tensor.kind
    if level == "block-kind":
        return tensor.kind if tensor.block is None else f"block {tensor.block} {tensor.kind}"
    return tensor.name


def _cut(tensors: Sequence[Tensor], level: Level, row_blocks: int) -> list[tuple[tuple[Part, ...], str]]:
    """The parts of one item after the other, and what is added to its name."""
    if level != "rows" or len(tensors[0].shape) < 2:
        return [(tuple(Part(tensor) for tensor in tensors), "")]
    height = -(-tensors[0].shape[0] // row_blocks)
    starts = range(0, tensors[0].shape[0], height)
    ranges = [(start, min(start + height, tensors[0].shape[0])) for start in starts]
    return [((Part(tensors[0], rows),), f"[{rows[0]}:{rows[1]}]") for rows in ranges]


def _native(parts: Anatomy, name: str, pieces: tuple[Part, ...], level: Level) -> Item:
    first = pieces[0].tensor
    block = None if level == "type" or first.block is None else parts.blocks[first.block]
    role = first.kind if level in ("type", "block-kind") else first.name
    if block is not None and level in ("tensor", "rows"):
        role = first.name.removeprefix(f"{block.path}.")
    return Item(
        name=name,
        kind=first.kind,
        role=role,
        depth=None if block is None else parts.relative_depth(block),
        part=None if block is None else block.part,
        count=sum(piece.count for piece in pieces),
        parts=pieces,
    )


def added_items(
    model: nn.Module,
    parts: Anatomy,
    candidates: Sequence[Tensor],
    strategies: Sequence[str],
    size: int,
    seed: int,
) -> list[Item]:
    """Modules that could be added: a LoRA on every linear layer, an adapter and a prefix on every block.

    Args:
        model: The plain model.
        parts: Its anatomy.
        candidates: The tensors that may be selected: where none of a place's is, nothing is added.
        strategies: Of "lora", "adapter" and "prefix".
        size: Rank, width and length.
        seed: Of their initial values.

    Returns:
        The items; a place that cannot carry a strategy has none of it.

    Raises:
        PareError: Unknown strategy, or no place can carry any of those asked for.
    """
    items = []
    refusals: list[PareError] = []
    for name in strategies:
        if name not in ADDABLE:
            raise PareError(f"added {name!r} is none of {', '.join(ADDABLE)}{near(name, ADDABLE)}")
        for module, block_index in _places(model, parts, candidates, name):
            block = parts.blocks[block_index]
            try:
                count = STRATEGIES[name].count(model, module, size, {"seed": seed})
            except PareError as refusal:  # such as an adapter where the feed-forward is of experts
                refusals.append(refusal)
                continue
            items.append(
                Item(
                    name=f"{module} + {name} {size}",
                    kind=name,
                    role=module.removeprefix(block.path).lstrip("."),
                    depth=parts.relative_depth(block),
                    part=block.part,
                    count=count,
                    addition=Addition(name, module, size, count, {"seed": seed}),
                )
            )
    if refusals and not items:
        raise refusals[0]
    return items


def _places(
    model: nn.Module, parts: Anatomy, candidates: Sequence[Tensor], strategy: str
) -> list[tuple[str, int]]:
    """Module paths and block numbers where a strategy can be added."""
    inside = [tensor for tensor in candidates if tensor.block is not None]
    if strategy == "lora":
        return [
            (tensor.module, int(tensor.block or 0))
            for tensor in inside
            if tensor.kind in ("attention", "mlp") and carries_lora(model, tensor.module)
        ]
    numbers = sorted({int(tensor.block or 0) for tensor in inside})
    return [(parts.blocks[number].path, number) for number in numbers]


def rivals(items: Sequence[Item]) -> tuple[tuple[int, ...], ...]:
    """Items of which one makes the other pointless: a LoRA on a matrix that is trained itself."""
    loras = {
        item.addition.module: number
        for number, item in enumerate(items)
        if item.addition is not None and item.addition.strategy == "lora"
    }
    pairs = {
        (number, loras[part.tensor.module])
        for number, item in enumerate(items)
        for part in item.parts
        if part.tensor.module in loras and len(part.tensor.shape) >= 2
    }
    return tuple(sorted(pairs))
