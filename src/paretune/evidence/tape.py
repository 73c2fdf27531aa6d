"""Hooks that turn one forward and one backward of a batch into per-example gradients, tensor by tensor."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paretune.evidence.gradients import ExampleGradients, Factor
from paretune.evidence.rules import Call, Rule
from paretune.evidence.shared import Shared, Slot

__all__ = ["Tape"]

FindRule = Callable[[Call, Any], Rule | None]


class Tape:
    """Listens to the layers of a model.

    `recording` wraps the forward; `backward` then hands over the per-example gradients of one tensor after
    the other, as soon as all uses of the tensor have theirs. Parameters need not require gradients: the graph
    is made to begin at the first layer that is listened to.

    Attributes:
        irregular: Tensors of which the last forward had a call without a rule or without a dimension of
            examples; they are not handed over.
        spread: Embeddings that looked up rows once for all examples.
    """

    def __init__(
        self,
        slots: Iterable[Slot],
        shared: Iterable[Shared],
        find_rule: FindRule,
        take: Callable[[ExampleGradients], None],
        *,
        spread: set[nn.Module] | None = None,
    ) -> None:
        """Install the hooks; `close` removes them.

        Args:
            slots: The parameters to listen to through their modules' calls.
            shared: Values that get a dimension of examples during a forward.
            find_rule: The rule for a call, None where there is none.
            take: Is handed the gradients.
            spread: Embeddings that look up rows once for all examples (positions), so that each gets its
                copy; None for every embedding that seems to.
        """
        self._find_rule, self._take, self._spread = find_rule, take, spread
        self.spread: set[nn.Module] = set()
        slots, self._shared = list(slots), list(shared)
        self._locals: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for slot in slots:
            self._locals[slot.module][slot.local] = slot.name
        self._shapes = {slot.name: slot.parameter.shape for slot in (*slots, *(s.slot for s in self._shared))}
        self._examples = 0  # 0: not listening
        self._lengths: set[int] = set()  # how many tokens an example has
        self.irregular: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._parts: dict[str, list[Factor]] = defaultdict(list)
        self._handles = [
            module.register_forward_hook(self._after, with_kwargs=True) for module in self._locals
        ]

    @property
    def used(self) -> set[str]:
        """Tensors that the last forward used."""
        return {*self._uses, *self.irregular}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self, examples: int) -> Iterator[None]:
        """Listen to one forward of so many examples."""
        self.irregular.clear()
        self._lengths.clear()
        self._uses.clear()
        self._examples = examples
        try:
            for shared in self._shared:
                shared.begin(examples, lambda name: self._uses.update([name]), self._arrived)
            yield
        finally:
            self._examples = 0
            for shared in self._shared:
                shared.end()

    def backward(self, loss: Tensor, *, again: bool = False) -> None:
        """Hand over the gradients of each example of a loss that is a sum over the recorded examples.

        Args:
            loss: The scalar.
            again: Another backward of the same forward follows.
        """
        with self.collecting():
            if loss.requires_grad:
                loss.backward(retain_graph=again)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around one backward: what is left at its end is handed over."""
        self._waiting = Counter(self._uses)
        self._parts.clear()
        yield
        for name in list(self._parts):  # a use that the loss does not depend on has waited in vain
            self._hand_over(name)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Note a call and wait for its output's gradient."""
        if not self._examples:
            return None
        names = self._locals[module]
        call = Call.of(module, args, kwargs)
        rule = self._rule(call, output) if call is not None else None
        spread = call is not None and rule is not None and self._is_spread(module, output)
        if call is None or rule is None or not (spread or self._has_examples(call.input, output)):
            self.irregular.update(names.values())
            return None
        given = output
        if spread:
            output = output.expand(self._examples, *output.shape[-2:])
        if not output.requires_grad:
            output = output.detach().requires_grad_().clone()  # not a leaf: the model may write into it
        self._uses.update(names.values())
        examples = self._examples
        output.register_hook(lambda gradient: self._called(call, rule, names, examples, gradient))
        return None if output is given else output

    def _is_spread(self, module: nn.Module, output: Tensor) -> bool:
        """Whether rows were looked up once for all examples; each then gets its copy of them."""
        if self._examples < 2 or not isinstance(module, nn.Embedding) or output.ndim > 3:
            return False
        once = output.ndim == 2 or len(output) == 1
        if self._spread is None:  # as many rows as examples: rather an example's row each
            once = once and not (output.ndim == 2 and len(output) == self._examples)
        else:
            once = once and module in self._spread
        if once:
            self.spread.add(module)
        return once

    def _has_examples(self, x: Tensor, output: Tensor) -> bool:
        """Whether the first dimension of a call is examples, or a run of as many parts of each.

        Parts are tokens or windows. Tokens as a matrix are trusted only where they are as many as the model
        has elsewhere: else they may be those of any example that a router sent here.
        """
        count, rest = divmod(len(x), self._examples)
        if rest or len(output) != len(x):
            return False
        if count == 1 and x.ndim == (3 if x.is_floating_point() else 2):
            self._lengths.add(x.shape[1])
        return count == 1 or x.ndim > 2 or count in self._lengths

    def _rule(self, call: Call, output: Any) -> Rule | None:
        """The rule for a call; not listening meanwhile, since finding it may call the module."""
        examples, self._examples = self._examples, 0
        with torch.no_grad():
            rule = self._find_rule(call, output)
        self._examples = examples
        return rule

    def _called(
        self, call: Call, rule: Rule, names: Mapping[str, str], examples: int, gradient: Tensor
    ) -> None:
        """The gradient of a call's output has arrived."""
        with torch.no_grad():
            factors = rule.factors(call, gradient)
            for local, name in names.items():
                part = factors["bias" if local == "bias" else "weight"]()
                self._arrived(name, part if part.examples == examples else part.regrouped(examples))

    def _arrived(self, name: str, part: Factor) -> None:
        """One use of a tensor has its gradient."""
        self._parts[name].append(part)
        self._waiting[name] -= 1
        if not self._waiting[name]:
            self._hand_over(name)

    def _hand_over(self, name: str) -> None:
        """All uses of a tensor that get a gradient have it."""
        parts = self._parts.pop(name)
        if name not in self.irregular:
            with torch.no_grad():
                self._take(ExampleGradients(name, self._shapes[name], parts))
