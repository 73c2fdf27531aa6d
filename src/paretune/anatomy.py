"""What a model is made of: blocks in order, the kind of each tensor, tied tensors once, the head."""

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from paretune.errors import PareError
from paretune.structure import KINDS, Block, Kind, Structure

__all__ = ["Anatomy", "Block", "Kind", "Tensor", "anatomy", "base_digest", "mark_head"]

_CHUNK = 1 << 24  # weights hashed at a time: bounds what a model on a GPU needs of this machine's memory


@dataclass(frozen=True)
class Tensor:
    """One parameter of a model, named as in `model.named_parameters()`.

    Attributes:
        name: Its name; of a tied tensor, the first of its names.
        shape: Its shape.
        kind: "attention" and "mlp" are the matrices of a block; "norm" is a norm's weight and its bias;
            "bias" is any other bias; "embedding" is a looked-up table (tokens, positions, types), a learned
            token or position, a patch projection and the projection onto the vocabulary; "head" is new to
            the task; "other" is the rest (a pooler, a convolution). T5's table of relative positions is
            "attention": it sits in a block and shifts attention scores.
        block: The index of its block, None outside all blocks.
        module: The path of the module that holds it.
        aliases: Its other names, where it is tied.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    block: int | None
    module: str
    aliases: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Anatomy:
    """The tensors and blocks of a model.

    `print(anatomy)` shows a table of blocks and kinds.

    Attributes:
        tensors: Every parameter once, in the order of `model.named_parameters()`.
        blocks: The repeated layers: encoder blocks in order, then decoder blocks in order.
    """

    tensors: tuple[Tensor, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def head(self) -> tuple[Tensor, ...]:
        """The tensors that are new to the task."""
        return tuple(tensor for tensor in self.tensors if tensor.kind == "head")

    @cached_property
    def body(self) -> tuple[Tensor, ...]:
        """The pretrained tensors: all but the head."""
        return tuple(tensor for tensor in self.tensors if tensor.kind != "head")

    @property
    def weights(self) -> int:
        """How many pretrained weights there are: what a budget is a share of."""
        return sum(tensor.count for tensor in self.body)

    @property
    def head_weights(self) -> int:
        """How many weights of the head there are."""
        return sum(tensor.count for tensor in self.head)

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {name: tensor for tensor in self.tensors for name in (tensor.name, *tensor.aliases)}

    def tensor(self, name: str) -> Tensor:
        """The tensor of a name; a tied tensor answers to each of its names.

        Raises:
            PareError: There is no such tensor; the nearest names are in the message.
        """
        if name not in self._by_name:
            raise _no_such("tensor", name, list(self._by_name))
        return self._by_name[name]

    def relative_depth(self, block: int | Block) -> float:
        """Where a block sits in its encoder or decoder: 0 is the first, 1 the last, 0.5 an only one.

        Args:
            block: A block or its index.

        Raises:
            PareError: There is no block of this index.
        """
        index = block.index if isinstance(block, Block) else block
        if not 0 <= index < len(self.blocks):
            count = len(self.blocks)
            raise PareError(f"there is no block {index}: the model has {count} blocks, numbered from 0")
        part = [other.index for other in self.blocks if other.part == self.blocks[index].part]
        return part.index(index) / (len(part) - 1) if len(part) > 1 else 0.5

    def __str__(self) -> str:
        """A table of weights: a row for each run of equal blocks, a column for each kind, 80 wide at most."""
        rows = [*self._block_rows(), *self._outer_rows()]
        kinds = [kind for kind in KINDS if kind != "head" and any(counts[kind] for _, counts in rows)]
        lines = [f"{'weights of':<19}" + "".join(f"{kind:>{_width(kind)}}" for kind in kinds) + f"{'all':>8}"]
        for label, counts in rows:
            cells = "".join(f"{_short(counts[kind]):>{_width(kind)}}" for kind in kinds)
            lines.append(f"{label:<19}{cells}{_short(counts.total()):>8}")
        tied = sum(bool(tensor.aliases) for tensor in self.tensors)
        once = f" ({tied} tied, counted once)" if tied else ""
        lines.append(f"pretrained: {self.weights:,} weights, tensors: {len(self.body)}{once}")
        lines.append(f"head: {self.head_weights:,} weights, tensors: {len(self.head)}")
        return "\n".join(lines)

    def _block_rows(self) -> list[tuple[str, Counter[Kind]]]:
        """A label and the weights of each kind, for each run of neighbouring blocks with equal weights."""
        per_block = [_count_kinds([t for t in self.body if t.block == block.index]) for block in self.blocks]
        runs: list[tuple[Block, Block]] = []
        for block in self.blocks:
            last = runs[-1][1] if runs else None
            if last and last.part == block.part and per_block[last.index] == per_block[block.index]:
                runs[-1] = (runs[-1][0], block)
            else:
                runs.append((block, block))
        return [(_label(first, last), per_block[first.index]) for first, last in runs]

    def _outer_rows(self) -> list[tuple[str, Counter[Kind]]]:
        """The rows for what is outside the blocks, for the head and for the whole model."""
        outside = _count_kinds([t for t in self.body if t.block is None])
        head = _count_kinds(self.head)
        rows = [("outside", outside)] if outside else []
        rows += [("head", head)] if head else []
        return [*rows, ("all", _count_kinds(self.tensors))]


def anatomy(model: nn.Module, head: Iterable[str] | None = None) -> Anatomy:
    """Read what a model is made of.

    Args:
        model: Any module, without added modules attached.
        head: Names of the parameters that are new to the task. None takes what `mark_head` remembered;
            without that, the parameters outside the base model of a transformers model that is no language
            model.

    Returns:
        Its anatomy; the counts of the tensors sum up to the number of different parameters.

    Raises:
        PareError: A name in `head` is no parameter, or the model has no parameters.
    """
    aliases = _aliases(model)
    if not aliases:
        raise PareError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    structure = Structure(model)
    new = set(_head_names(model, head, aliases))
    tensors = []
    for name, others in aliases.items():
        # A tied tensor is what the first of its places says that says anything.
        kinds = (structure.kind(each) for each in (name, *others))
        kind: Kind = "head" if name in new else next((k for k in kinds if k != "other"), "other")
        shape = tuple(model.get_parameter(name).shape)
        tensors.append(
            Tensor(name, shape, kind, structure.block_of(name), name.rpartition(".")[0], tuple(others))
        )
    return Anatomy(tuple(tensors), structure.blocks)


def mark_head(model: nn.Module, names: Iterable[str]) -> None:
    """Remember which parameters the checkpoint did not hold, as `model.paretune_head`.

    Args:
        model: The model just loaded.
        names: The loader's missing keys; names of buffers are passed over.

    Raises:
        PareError: A name is neither a parameter nor a buffer.
    """
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    aliases = _aliases(model)
    marked = _canonical([name for name in names if name not in buffers], aliases)
    model.paretune_head = tuple(name for name in aliases if name in marked)  # type: ignore[assignment]


def base_digest(model: nn.Module, head: Iterable[str]) -> str:
    """The sha256 of all pretrained weights: of name, dtype, shape and bytes of each tensor, in order of name.

    It is the same on every device and whether or not a weight is trained. One piece of one tensor at a time
    is brought to the CPU.

    Args:
        model: The plain model.
        head: Names of the parameters to leave out.

    Returns:
        64 hexadecimal digits.

    Raises:
        PareError: A name in `head` is no parameter, or a parameter holds no values (device "meta").
    """
    aliases = _aliases(model)
    new = set(_canonical(head, aliases))
    digest = hashlib.sha256()
    for name in sorted(set(aliases) - new):
        weight = model.get_parameter(name).detach()
        if weight.is_meta:
            raise PareError(f"{name} holds no values (device meta): load the weights before taking a digest")
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        for piece in weight.reshape(-1).split(_CHUNK):
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Each parameter's first name and its other names, in the order of `named_parameters()`."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values()}


def _canonical(names: Iterable[str], aliases: dict[str, list[str]]) -> list[str]:
    """The first name of each parameter named."""
    first = {name: main for main, others in aliases.items() for name in (main, *others)}
    wanted = list(names)
    for name in wanted:
        if name not in first:
            raise _no_such("parameter", name, list(first))
    return [first[name] for name in wanted]


def _head_names(model: nn.Module, head: Iterable[str] | None, aliases: dict[str, list[str]]) -> Sequence[str]:
    """The names of the head: as given, as remembered, or what lies outside the base model."""
    if isinstance(head, str):
        raise PareError(f"head must be a list of names, not one string: write [{head!r}]")
    if head is None:
        head = getattr(model, "paretune_head", None)
    if head is not None:
        return _canonical(head, aliases)
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        return ()
    output = getattr(model, "get_output_embeddings", None)
    if callable(output) and output() is not None:
        return ()  # a language model: its checkpoint holds the projection onto the vocabulary
    inside = f"{prefix}."
    return [
        name
        for name, others in aliases.items()
        if not any(each.startswith(inside) for each in (name, *others))
    ]


def _no_such(what: str, name: str, known: list[str]) -> PareError:
    """The error for a name that is not there."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; names are those of model.named_parameters()"
    return PareError(f"there is no {what} {name!r} in the model{hint}")


def _count_kinds(tensors: Iterable[Tensor]) -> Counter[Kind]:
    counts: Counter[Kind] = Counter()
    for tensor in tensors:
        counts[tensor.kind] += tensor.count
    return counts


def _label(first: Block, last: Block) -> str:
    """What a run of blocks is called, "6 x encoder 0-5": the row shows the weights of one of them."""
    if first == last:
        return f"{first.part} {first.index}"
    return f"{last.index - first.index + 1} x {first.part} {first.index}-{last.index}"


def _width(kind: Kind) -> int:
    """How wide a kind's column is."""
    return max(len(kind) + 1, 8)


def _short(count: int) -> str:
    """A count in at most six characters: 0 as "-", 1234567 as "1.23M"."""
    if count < 1000:
        return str(count) if count else "-"
    for unit, size in (("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12)):
        if count < size * 999.5:
            return f"{count / size:.3g}{unit}"
    return f"{count:.1e}"
