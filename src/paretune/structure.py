"""What a module is, read from how it is built: repeated blocks, norms, attention, embeddings.

No model is known by name. A block is an element of a list of repeated modules; a norm is a module with only
vectors and an epsilon; attention is a module that holds a query, a key and a value, or that says so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Kind = Literal["attention", "mlp", "norm", "bias", "embedding", "head", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part = Literal["encoder", "decoder"]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_ATTENTION_NAME = re.compile(r"attn|attention", re.IGNORECASE)
_ATTENTION_CLASS = re.compile(r"(attn|attention)$", re.IGNORECASE)
_ROLE = re.compile(r"(?:^|_)w?(q|k|v|query|key|value)(?:_|$)", re.IGNORECASE)
_OUTPUT_ROLE = re.compile(r"(?:^|_)w?o(?:ut)?(?:_|$)", re.IGNORECASE)
_FUSED_ROLES = re.compile(r"qkv|query_?key_?value", re.IGNORECASE)
_LOOKED_UP = re.compile(r"emb|pos|token", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One of the repeated layers of a model.

    Attributes:
        index: Its running number, encoder blocks first, then decoder blocks.
        path: The path of its module, as in `model.get_submodule(path)`.
        part: "decoder" where the attention is causal or the path says so, else "encoder".
    """

    index: int
    path: str
    part: Part


class Structure:
    """The blocks of a model, and the kind of each of its parameters.

    Args:
        model: Any module, without added modules attached.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self.blocks = find_blocks(model)
        self._ancestors = {a for block in self.blocks for a in _ancestors(block.path)}
        self._before_blocks = self._paths_before_blocks()
        self._output = _output_embedding(model)
        self._block_of_path = {block.path: block.index for block in self.blocks}
        starts = ("", *self._block_of_path)
        around = self._ancestors.union(starts)
        self._attention = {
            path
            for path, module in self._modules.items()
            if path not in around and is_attention(path.rpartition(".")[2], module)
        }
        self._open = {path for path in starts if _has_roles(self._modules[path])}

    def block_of(self, name: str) -> int | None:
        """The index of the block that holds a parameter, None outside all blocks."""
        return next((self._block_of_path[p] for p in _ancestors(name) if p in self._block_of_path), None)

    def kind(self, name: str) -> Kind:
        """The kind of a parameter by its place alone; whether it is new to the task is not seen here.

        Args:
            name: A name from `model.named_parameters(remove_duplicate=False)`.
        """
        path, _, leaf = name.rpartition(".")
        owner = self._modules[path]
        dimensions = getattr(owner, leaf).ndim
        if is_norm(owner):
            return "norm"
        if _is_bias(owner, leaf, dimensions):
            return "bias"
        block = self.block_of(name)
        if self._in_attention(path, leaf, block):
            return "attention"
        if _is_embedding(owner) or owner is self._output:
            return "embedding"
        if block is None and (self._in_embeddings(path) or self._is_looked_up(path, leaf)):
            return "embedding"
        if isinstance(owner, _ConvNd) and any(size != 1 for size in owner.kernel_size):
            # A convolution in front of the blocks turns patches or frames into features.
            return "embedding" if path in self._before_blocks else "other"
        linear = dimensions >= 2 and not _holds_modules(owner)
        return "mlp" if linear and (block is not None or not self.blocks) else "other"

    def _in_attention(self, path: str, leaf: str, block: int | None) -> bool:
        """Whether a module on the way from the block (or the model) down to a parameter is attention."""
        if not self._attention.isdisjoint((*_ancestors(path), path)):
            return True
        start = "" if block is None else self.blocks[block].path
        if isinstance(self._modules[start], nn.MultiheadAttention):
            return True
        # A block that holds its projections itself: only those are attention, the rest is not.
        child = path.removeprefix(start).lstrip(".").partition(".")[0] or leaf
        return start in self._open and _plays_role(child)

    def _in_embeddings(self, path: str) -> bool:
        """Whether a module outside the blocks is in a group, without blocks, that holds an embedding."""
        groups = [p for p in (*_ancestors(path), path) if p and p not in self._ancestors]
        return any(
            _is_embedding(module)
            or (isinstance(module, _ConvNd) and f"{group}.{below}" in self._before_blocks)
            for group in groups
            for below, module in self._modules[group].named_modules()
        )

    def _is_looked_up(self, path: str, leaf: str) -> bool:
        """Whether a parameter held by a container is a learned token or position, as ViT's class token is."""
        owner = self._modules[path]
        parameter = getattr(owner, leaf)
        if not _holds_modules(owner) or parameter.ndim == 0:
            return False
        return bool(_LOOKED_UP.search(leaf)) or (parameter.ndim >= 2 and parameter.shape[0] == 1)

    def _paths_before_blocks(self) -> frozenset[str]:
        """Paths of the modules made before the first block."""
        paths = list(self._modules)
        first = min((paths.index(block.path) for block in self.blocks), default=0)
        return frozenset(paths[:first])


def find_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The repeated layers of a model: encoder blocks in order, then decoder blocks in order.

    A stack is a `ModuleList` or `Sequential` of repeated modules that are themselves made of modules. Lists
    inside a block are not blocks, but where a list of stages holds lists of layers (Swin, ALBERT) the layers
    are taken. Where a stack holds attention, only such stacks count (the convolutions in front of a speech
    encoder do not); else the heaviest stack and those of its class count.

    Args:
        model: Any module.

    Returns:
        The blocks; empty for a model without repeated layers.
    """
    stacks = list(_stacks("", model))
    with_attention = [stack for stack in stacks if _count_attention(stack[1])]
    if not with_attention and stacks:
        heaviest = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
        like = {type(child) for child in heaviest[1].children()}
        stacks = [stack for stack in stacks if like & {type(child) for child in stack[1].children()}]
    found: dict[nn.Module, tuple[str, Part]] = {}
    for path, stack in with_attention or stacks:
        for name, child in stack.named_children():
            found.setdefault(child, (f"{path}.{name}" if path else name, _part(path, child, model)))
    ordered = sorted(found.values(), key=lambda pair: pair[1] == "decoder")
    return tuple(Block(index, path, part) for index, (path, part) in enumerate(ordered))


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: a norm of torch, or vectors alone beside an epsilon (any RMSNorm)."""
    own = list(module.parameters(recurse=False))
    if not own or isinstance(module, _NORMS):
        return bool(own)
    if any(p.ndim > 1 for p in own) or _holds_modules(module):
        return False
    guarded = any("eps" in key and isinstance(value, float) for key, value in vars(module).items())
    return guarded or "norm" in type(module).__name__.lower()


def is_attention(name: str, module: nn.Module) -> bool:
    """Whether a module is attention: it holds a query, a key and a value, or it is called so.

    Args:
        name: What its parent calls it ("self_attn").
        module: The module itself.
    """
    if next(module.parameters(), None) is None or is_norm(module):
        return False
    if _ATTENTION_NAME.search(name) or _ATTENTION_CLASS.search(type(module).__name__):
        return True
    return _has_roles(module)


def _is_only_attention(module: nn.Module) -> bool:
    """Whether a module is attention and nothing else: a block that holds its projections itself is more."""
    inside = [name for name, child in module.named_children() if any(p.ndim > 1 for p in child.parameters())]
    named = bool(_ATTENTION_CLASS.search(type(module).__name__))
    return named or (is_attention("", module) and all(_plays_role(name) for name in inside))


def _plays_role(name: str) -> bool:
    """Whether something is called as a projection of attention is: query, key, value, fused or output."""
    return any(role.search(name) for role in (_ROLE, _FUSED_ROLES, _OUTPUT_ROLE))


def _has_roles(module: nn.Module) -> bool:
    """Whether what a module holds plays the roles of query, key and value, each alone or fused."""
    names = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    names += [name for name, _ in module.named_parameters(recurse=False)]
    roles = {match[1][0].lower() for name in names if (match := _ROLE.search(name))}
    return roles == {"q", "k", "v"} or any(_FUSED_ROLES.search(name) for name in names)


def _is_embedding(module: nn.Module) -> bool:
    """Whether a module looks rows up in a table, as `nn.Embedding` does."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or hasattr(module, "num_embeddings")


def _is_bias(owner: nn.Module, leaf: str, dimensions: int) -> bool:
    """Whether a parameter is added to the output of a matrix beside it."""
    if leaf == "bias" or leaf.endswith("_bias") or (leaf.startswith("bias") and dimensions == 1):
        return True
    beside_matrix = any(p.ndim >= 2 for p in owner.parameters(recurse=False))
    return dimensions == 1 and beside_matrix and not _holds_modules(owner)


def _holds_modules(module: nn.Module) -> bool:
    """Whether some of a module's weights belong to modules inside it."""
    return any(next(child.parameters(), None) is not None for child in module.children())


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """A language model's projection onto its vocabulary, None where there is none."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if callable(getter) else None


def _ancestors(path: str) -> Iterator[str]:
    """The paths above a path, the root ("") first."""
    parts = path.split(".")
    return (".".join(parts[:depth]) for depth in range(len(parts)))


def _stacks(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every list of repeated modules that is not inside another; stages give way to their layers."""
    inner = [
        stack
        for name, child in module.named_children()
        for stack in _stacks(f"{path}.{name}" if path else name, child)
    ]
    if not _repeats(module):
        yield from inner
        return
    attention = _count_attention(module)
    stages = bool(attention) and attention == sum(_count_attention(stack) for _, stack in inner)
    yield from inner if stages else [(path, module)]


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a list of repeated modules that could be blocks."""
    children = list(module.children())
    if not children or not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    if not all(_holds_modules(child) and not _is_only_attention(child) for child in children):
        return False
    classes = {type(child) for child in children}
    if isinstance(module, nn.Sequential):
        return len(classes) == 1 < len(children)
    return len(classes) < len(children) or len(children) == 1


def _count_attention(module: nn.Module) -> int:
    """How many attention modules a module holds below itself."""
    return sum(is_attention(path.rpartition(".")[2], child) for path, child in module.named_modules() if path)


def _part(path: str, block: nn.Module, model: nn.Module) -> Part:
    """Whether a block belongs to an encoder or to a decoder."""
    inside = list(block.modules())
    if any(getattr(module, "is_causal", False) is True for module in inside):
        return "decoder"
    if any("causal" in type(module).__name__.lower() for module in inside):
        return "decoder"
    said = re.search(r"encoder|decoder", path)
    if said:
        return "decoder" if said[0] == "decoder" else "encoder"
    can_generate = getattr(model, "can_generate", None)
    return "decoder" if callable(can_generate) and can_generate() else "encoder"
