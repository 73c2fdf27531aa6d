"""Where in a block its attention and its feed-forward give their output, read from the model's anatomy."""

import difflib
from weakref import WeakKeyDictionary

from torch import nn
from transformers.pytorch_utils import Conv1D

from paretune.anatomy import Anatomy, Block, anatomy
from paretune.errors import PareError
from paretune.strategies.paths import named_slots, plain, plain_view, slot
from paretune.structure import is_attention

# A design asks for counts thousands of times; the anatomy of a model is read once while its modules stay.
_read: WeakKeyDictionary[nn.Module, tuple[tuple, Anatomy]] = WeakKeyDictionary()


def plain_anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of the plain model, whatever is attached to it now."""
    shape = tuple((path, type(plain(module))) for path, module in named_slots(model))
    known = _read.get(model)
    if known is None or known[0] != shape:
        with plain_view(model):
            known = (shape, anatomy(model))
        _read[model] = known
    return known[1]


def find_block(model: nn.Module, path: str) -> Block:
    """The block at a path.

    Raises:
        PareError: There is no block of this path; the message names the nearest ones.
    """
    blocks = {block.path: block for block in plain_anatomy(model).blocks}
    if path not in blocks:
        near = difflib.get_close_matches(path, blocks, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else f"its blocks are {_listed(list(blocks))}"
        raise PareError(f"{path!r} is no block of the model; {hint}")
    return blocks[path]


def width_of(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a Linear or Conv1D layer."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def check_called(model: nn.Module, path: str) -> None:
    """Refuse a layer whose weight is read past it, so that nothing added to the layer would be seen."""
    above, _, _ = path.rpartition(".")
    if above and isinstance(slot(model, above), nn.MultiheadAttention):
        raise PareError(f"nothing can be added to {path}: torch's MultiheadAttention never calls it")


def feed_forward_output(model: nn.Module, path: str) -> str:
    """Path of the layer that ends a block's feed-forward: the one that comes back to the block's width.

    Raises:
        PareError: The block has no feed-forward made of Linear or Conv1D layers, or several (experts).
    """
    block = find_block(model, path)
    layers = _layers(model, block, "mlp")
    if not layers:
        raise PareError(f"block {block.index} ({path}) has no feed-forward of Linear or Conv1D layers")
    width = width_of(plain(slot(model, layers[0])))[0]
    ends = [layer for layer in layers if width_of(plain(slot(model, layer)))[1] == width]
    narrowed = [layer for layer in ends if width_of(plain(slot(model, layer)))[0] != width]
    if not ends or len(narrowed) > 1:
        found = f"{len(narrowed)} layers end" if ends else "no layer ends"
        raise PareError(f"block {block.index} ({path}): {found} a feed-forward of width {width}, not one")
    return (narrowed or ends)[-1]


def attention_output(model: nn.Module, path: str) -> str:
    """Path of the layer that ends a block's self-attention: its last one of the block's width.

    Raises:
        PareError: The block's attention does not end in a Linear or Conv1D layer.
    """
    block = find_block(model, path)
    within = (*attention_paths(model, path), path)[0]
    layers = [layer for layer in _layers(model, block, "attention") if f"{layer}.".startswith(f"{within}.")]
    width = width_of(plain(slot(model, layers[0])))[0] if layers else 0
    ends = [layer for layer in layers if width_of(plain(slot(model, layer)))[1] == width]
    if not ends:
        raise PareError(f"block {block.index} ({path}): its attention does not end in a Linear or Conv1D")
    check_called(model, ends[-1])
    return ends[-1]


def attention_paths(model: nn.Module, path: str) -> tuple[str, ...]:
    """Paths of the outermost attention modules of a block: self-attention, then cross-attention if any."""
    found: list[str] = []
    for below, module in named_slots(slot(model, path), path):
        inside = any(below.startswith(f"{outer}.") for outer in found)
        if not inside and is_attention(below.rpartition(".")[2], plain(module)):
            found.append(below)
    return tuple(found)


def _layers(model: nn.Module, block: Block, kind: str) -> list[str]:
    """Paths of the Linear and Conv1D layers of a kind in a block, in the order in which they were made."""
    paths = [t.module for t in plain_anatomy(model).tensors if t.block == block.index and t.kind == kind]
    return [p for p in dict.fromkeys(paths) if isinstance(plain(slot(model, p)), nn.Linear | Conv1D)]


def _listed(paths: list[str]) -> str:
    if not paths:
        return "not to be found"
    return ", ".join(paths) if len(paths) < 5 else f"{paths[0]}, {paths[1]}, ..., {paths[-1]}"
