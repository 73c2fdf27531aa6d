"""Per-example gradients of a model in batches: one forward and one backward feed any number of consumers."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.check import Batch, Findings, Losses, first_examples, requiring_gradients, study
from paretune.evidence.consumers import Consumer
from paretune.evidence.gradients import Dense, ExampleGradients, matrix_shape
from paretune.evidence.precision import Precision, casting, check_precision
from paretune.evidence.state import undisturbed
from paretune.evidence.tape import Tape

__all__ = ["Collector"]


class Collector:
    """Feeds the gradients of every example of a model's loss to consumers, a batch at a time.

    ```python
    squares = SquaredSum(dict(model.named_parameters()))
    with Collector(model, [squares]) as collector:
        for positions, batch in batches:
            collector.run(task.example_losses, batch, positions)
    ```

    Within the block the model is in eval mode and its parameters are frozen; afterwards it is as it was. The
    first batch is also used to find the rule of each layer and to check it (`paretune.evidence.check`), as
    precisely as the model is.

    Attributes:
        model: The model.
        slow: Tensors without a rule, whose gradients are taken one example at a time (after the first batch).
    """

    def __init__(
        self, model: nn.Module, consumers: Sequence[Consumer], precision: Precision = "fp32"
    ) -> None:
        """Say what is wanted; nothing happens to the model yet.

        Args:
            model: The model.
            consumers: Who is fed. The tensors that any of them wants are taken; a backward goes no further
                down than these need.
            precision: Of products, see `paretune.evidence.precision.casting`.

        Raises:
            PareError: No consumer wants any of the model's tensors, or the model cannot have the precision.
        """
        self.model, self._consumers = model, list(consumers)
        self._tensors = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point() and any(consumer.wants(name) for consumer in consumers)
        }
        if not self._tensors:
            raise PareError("no tensor of the model is wanted; name tensors as in model.named_parameters()")
        check_precision(model, precision)
        self._precision = precision
        self._positions = torch.empty(0, dtype=torch.int64)
        self._checked_examples = 0
        self._findings = Findings()
        self._tape: Tape | None = None
        self._stack = ExitStack()

    @property
    def slow(self) -> tuple[str, ...]:
        """Tensors whose gradients are taken one example at a time, in the model's order."""
        return tuple(name for name in self._tensors if name in self._findings.slow)

    def __enter__(self) -> Self:
        """Put the model into eval mode and freeze it."""
        self._stack.enter_context(undisturbed(self.model))
        self._stack.callback(self._listen_no_more)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the model back as it was."""
        self._stack.close()

    def run(self, losses: Losses, batch: Batch, positions: Sequence[int] | Tensor) -> Tensor:
        """Take the gradients of one batch.

        Args:
            losses: From the model and a batch to one loss for each example, (examples,), or several,
                (several, examples), of which each is differentiated for itself.
            batch: The batch; tensors with the examples first.
            positions: For each example, the number that consumers know it by, (examples,); or another for
                each of several losses, (several, examples).

        Returns:
            The losses, detached.

        Raises:
            PareError: The model's forward is random.
        """
        known = torch.atleast_2d(torch.as_tensor(positions, dtype=torch.int64))
        examples = known.shape[1]
        tape = self._prepared(losses, batch, examples)
        with torch.enable_grad():
            with tape.recording(examples), casting(self.model, self._precision):
                values = losses(self.model, batch)
            passes = values.reshape(-1, examples)
            known = known.expand(len(passes), examples)
            for number, row in enumerate(passes, start=1):
                self._positions = known[number - 1]
                tape.backward(row.sum(), again=number < len(passes))
        slow = self._findings.slow | tape.irregular
        if slow:
            tensors = {name: self._tensors[name] for name in self._tensors if name in slow}
            self._one_by_one(losses, batch, tensors, known)
        return values.detach()

    def _prepared(self, losses: Losses, batch: Batch, examples: int) -> Tape:
        """The hooks, checked on a batch of several examples if there has been one."""
        if self._tape is None or (self._checked_examples < 2 <= examples):
            self._listen_no_more()
            with casting(self.model, "fp32"):  # the finer the gradients, the stricter the check
                found = study(self.model, losses, batch, examples, self._tensors)
            self._findings, self._checked_examples = found, examples
            rules = found.rules
            self._tape = Tape(
                found.slots,
                found.shared,
                lambda call, _: rules.get(call.module),
                self._take,
                spread=found.spread,
            )
        return self._tape

    def _listen_no_more(self) -> None:
        """Remove the hooks."""
        if self._tape is not None:
            self._tape.close()
            self._tape = None

    def _take(self, gradients: ExampleGradients) -> None:
        """Feed a tensor's gradients to those who want them."""
        hungry = [
            consumer
            for consumer in self._consumers
            if consumer.wants(gradients.name) and not consumer.whole(gradients, self._positions)
        ]
        if hungry:
            for block in gradients.blocks():
                for consumer in hungry:
                    consumer.block(gradients.name, block, self._positions)

    def _one_by_one(
        self, losses: Losses, batch: Batch, tensors: dict[str, nn.Parameter], positions: Tensor
    ) -> None:
        """Take the gradients of some tensors one example at a time; positions (several, examples)."""
        with requiring_gradients(tensors.values()), torch.enable_grad():
            for example in range(positions.shape[1]):
                one = first_examples(batch, example, example + 1)
                with casting(self.model, self._precision):
                    values = losses(self.model, one).flatten()
                for number, value in enumerate(values if values.requires_grad else (), start=1):
                    self._positions = positions[number - 1, example : example + 1]
                    gradients = torch.autograd.grad(
                        value, list(tensors.values()), allow_unused=True, retain_graph=number < len(values)
                    )
                    for (name, parameter), gradient in zip(tensors.items(), gradients, strict=True):
                        if gradient is not None:
                            shape = matrix_shape(parameter.shape)
                            dense = Dense(gradient.reshape(1, *shape))
                            self._take(ExampleGradients(name, parameter.shape, [dense]))
