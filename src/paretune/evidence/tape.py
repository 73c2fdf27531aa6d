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
    """

    def __init__(
        self,
        slots: Iterable[Slot],
        shared: Iterable[Shared],
        find_rule: FindRule,
        take: Callable[[ExampleGradients], None],
        *,
        broadcast: bool = True,
    ) -> None:
        """Install the hooks; `close` removes them.

        Args:
            slots: The parameters to listen to through their modules' calls.
            shared: Values that get a dimension of examples during a forward.
            find_rule: The rule for a call, None where there is none.
            take: Is handed the gradients.
            broadcast: Whether rows that are looked up once for all examples (positions) are looked up for
                each.
        """
        self._find_rule, self._take, self._broadcast = find_rule, take, broadcast
        slots, self._shared = list(slots), list(shared)
        self._locals: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for slot in slots:
            self._locals[slot.module][slot.local] = slot.name
        self._shapes = {slot.name: slot.parameter.shape for slot in (*slots, *(s.slot for s in self._shared))}
        self._examples = 0  # 0: not listening
        self.irregular: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._parts: dict[str, list[Factor]] = defaultdict(list)
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True) for module in self._locals
        ]
        self._handles += [
            module.register_forward_hook(self._after, with_kwargs=True) for module in self._locals
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self, examples: int) -> Iterator[None]:
        """Listen to one forward of so many examples."""
        self.irregular.clear()
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

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look up positions once for each example, where a model looks them up once for all."""
        first = args[0] if args else None
        if self._examples < 2 or not self._broadcast or not isinstance(first, Tensor):
            return None
        if first.is_floating_point() or first.ndim != 2 or first.shape[0] != 1:
            return None
        return (first.expand(self._examples, -1), *args[1:]), kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Note a call and wait for its output's gradient."""
        if not self._examples:
            return None
        names = self._locals[module]
        call = Call.of(module, args, kwargs)
        rule = self._rule(call, output) if call is not None else None
        if call is None or rule is None or {len(call.input), len(output)} != {self._examples}:
            self.irregular.update(names.values())
            return None
        begins = not output.requires_grad
        if begins:
            output = output.detach().requires_grad_().clone()  # not a leaf: the model may write into it
        self._uses.update(names.values())
        output.register_hook(lambda gradient: self._called(call, rule, names, gradient))
        return output if begins else None

    def _rule(self, call: Call, output: Any) -> Rule | None:
        """The rule for a call; not listening meanwhile, since finding it may call the module."""
        examples, self._examples = self._examples, 0
        with torch.no_grad():
            rule = self._find_rule(call, output)
        self._examples = examples
        return rule

    def _called(self, call: Call, rule: Rule, names: Mapping[str, str], gradient: Tensor) -> None:
        """The gradient of a call's output has arrived."""
        with torch.no_grad():
            factors = rule.factors(call, gradient)
            for local, name in names.items():
                self._arrived(name, factors[local]())

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
