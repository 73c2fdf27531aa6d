"""Module paths of the plain model, valid also while added modules wrap some of its modules."""

import contextlib
import difflib
from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from paretune.errors import PareError

# Every module that a strategy adds is registered under a name that starts like this.
ADDED = "paretune_"


def plain(module: nn.Module) -> nn.Module:
    """The module of the plain model inside a peft layer; any other module is returned as it is."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def slot(model: nn.Module, path: str) -> nn.Module:
    """What the model calls at a path now: the plain module, or the peft layer around it.

    Args:
        model: The model, plain or with added modules.
        path: Dotted path in the plain model.

    Raises:
        PareError: There is no such module; the message names the nearest ones.
    """
    module: nn.Module | None = model
    for part in path.split("."):
        module = plain(module)._modules.get(part) if module is not None else None
    if module is None or not path:
        near = difflib.get_close_matches(path, [name for name, _ in named_slots(model)], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise PareError(f"the model has no module {path!r}{hint}")
    return module


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Make the model call ``module`` at a path of the plain model."""
    above, _, leaf = path.rpartition(".")
    setattr(plain(slot(model, above)) if above else model, leaf, module)


def named_slots(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every path of the plain model below ``model`` with what sits there, a shared module under each path."""
    for name, child in plain(model)._modules.items():
        if child is not None and not name.startswith(ADDED):
            below = f"{path}.{name}" if path else name
            yield below, child
            yield from named_slots(child, below)


@contextlib.contextmanager
def plain_view(model: nn.Module) -> Iterator[None]:
    """Within the context the model's tree holds the plain modules alone, under their plain names."""
    changed: list[tuple[dict[str, nn.Module | None], dict[str, nn.Module | None]]] = []
    for module in list(model.modules()):
        children = module._modules
        kept = {
            name: plain(child) if child is not None else None
            for name, child in children.items()
            if not name.startswith(ADDED)
        }
        if kept != children and not isinstance(module, BaseTunerLayer):
            changed.append((children, dict(children)))
            children.clear()
            children.update(kept)
    try:
        yield
    finally:
        for children, whole in changed:
            children.clear()
            children.update(whole)
