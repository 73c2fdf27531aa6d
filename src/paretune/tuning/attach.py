"""Attach a plan to a model: the same ``nn.Module`` comes back, now tunable."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretune.anatomy import base_digest, mark_head
from paretune.delta import Delta, Values
from paretune.errors import PareError
from paretune.plan import Plan, Selection
from paretune.strategies import Attached, attach_additions
from paretune.tuning.moments import Move
from paretune.tuning.writethrough import Slot


class Tunable(nn.Module):
    """What a plan adds to a model; found at ``model.paretune`` after :func:`attach`.

    Its parameters are the trained values of the selected entries. They are no part of any ``state_dict``: the
    weights themselves hold the current values there, under their own names.

    Attributes:
        plan: The attached plan.
        slots: The partly trained (or low-precision) tensors by name.
        whole: The tensors trained whole in their own precision, by name.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.slots: dict[str, Slot] = {}
        self.whole: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
        self._attached: Attached | None = None
        self._added: dict[str, Tensor] = {}
        self._begun: dict[str, Tensor] = {}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that trains: tensor name or added-module key -> parameter."""
        parts = {name: slot.values for name, slot in self.slots.items()} | self.whole
        return parts | (self._attached.tensors if self._attached else {})

    @property
    def changed(self) -> bool:
        """Whether any trained value differs from what it was when the plan was attached."""
        starts = {name: slot.original for name, slot in self.slots.items()} | self._originals | self._added
        starts |= self._begun
        return any(not torch.equal(starts[n].to(v), v.detach()) for n, v in self.trained.items())

    def delta(self, model: nn.Module, info: dict[str, Any], masters: bool = False) -> Delta:
        """The trained values as a delta.

        Args:
            model: The model this is attached to.
            info: Anything JSON to keep with it.
            masters: Give the fp32 masters of low-precision weights instead of the values the model uses;
                checkpoints need them to go on to the same bits.
        """
        tensors = {}
        for selection in (*self.plan.selections, *self.plan.head):
            name = selection.tensor
            values = self._values(name, masters).clone()
            tensors[name] = Values(
                shape=tuple(selection.shape),
                granularity=selection.granularity,
                indices=selection.indices,
                values=values,
            )
        return Delta(
            base=self.plan.base,
            plan_digest=self.plan.digest,
            head=tuple(s.tensor for s in self.plan.head),
            task=dict(getattr(model, "paretune_task", {})),
            tensors=tensors,
            additions=self.plan.additions,
            added={k: p.detach().clone() for k, p in self._attached.tensors.items()}
            if self._attached
            else {},
            info={"method": self.plan.method, "seed": self.plan.seed, **_family(model), **info},
        )

    @contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        """For the block, the plain model with its current weights; it must leave them bit-equal."""
        for slot in self.slots.values():
            slot.set_aside()
        del model.paretune
        try:
            yield
        finally:
            model.add_module("paretune", self)
            for slot in self.slots.values():
                slot.take_up()

    @torch.no_grad()
    def reselect(self, model: nn.Module, plan: Plan) -> list[Move]:
        """Change the mask: entries in both plans keep their values, all others have the pretrained ones.

        Args:
            model: The model this is attached to.
            plan: A plan of the same base and head that selects no whole tensors; nor does the present one.

        Returns:
            Which parameters took over from which, for the optimiser.
        """
        before = {selection.tensor: selection for selection in self.plan.selections}
        after = {selection.tensor: selection for selection in plan.selections}
        old = {name: self.slots.pop(name) for name in before}
        heads = {name: (slot, self._unregister(name)) for name, slot in self.slots.items()}
        self.slots = {}
        moves = []
        for name, slot in old.items():
            slot.synchronise()
            slot.release()
            self._unregister(name)
            if name not in after:
                nowhere = np.empty(0, dtype=np.int64)
                moves.append(Move(slot.values, None, *_shared(nowhere, nowhere, slot)))
        for name, selection in after.items():
            self._train(model, selection)
            slot = self.slots[name]
            if name in old:
                old_at, new_at = _shared(before[name].flat(), selection.flat(), slot)
                slot.values[new_at] = old[name].values[old_at]
                slot.synchronise()
                moves.append(Move(old[name].values, slot.values, old_at, new_at))
        for name, (slot, values) in heads.items():
            self.slots[name] = slot
            self.register_parameter(_parameter_name(name), values)
        self.plan = plan
        return moves

    def _unregister(self, tensor: str) -> nn.Parameter:
        parameter = self._parameters.pop(_parameter_name(tensor))
        assert parameter is not None
        return parameter

    def _values(self, name: str, masters: bool) -> Tensor:
        if name in self.whole:
            return self.whole[name].detach()
        slot = self.slots[name]
        return slot.values.detach() if masters else slot.current()

    @torch.no_grad()
    def load(self, delta: Delta) -> None:
        """Take the trained values of a delta of the same plan (to go on training from it).

        Raises:
            PareError: The delta belongs to another plan.
        """
        if delta.plan_digest != self.plan.digest:
            raise PareError("this delta was trained under another plan; attach the plan it was trained with")
        for name, values in delta.tensors.items():
            parameter = self.slots[name].values if name in self.slots else self.whole[name]
            parameter.copy_(values.values.reshape(parameter.shape))
        for key, value in delta.added.items():
            assert self._attached is not None
            self._attached.tensors[key].copy_(value)

    def _train(self, model: nn.Module, selection: Selection) -> None:
        weight = model.get_parameter(selection.tensor)
        if selection.granularity == "all" and weight.dtype.itemsize >= 4:
            self._originals[selection.tensor] = weight.detach().clone()
            weight.requires_grad_(True)
            self.whole[selection.tensor] = weight
        else:
            slot = Slot(weight, selection)
            self.slots[selection.tensor] = slot
            self.register_parameter(_parameter_name(selection.tensor), slot.values)

    def _attach(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for selection in (*self.plan.selections, *self.plan.head):
            self._train(model, selection)
        if self.plan.additions:
            self._attached = attach_additions(model, self.plan.additions)
            self._added = {key: value.detach().clone() for key, value in self._attached.tensors.items()}
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Take the values that the plan begins with.

        Raises:
            PareError: It has values for what it does not train, or too many or few of them.
        """
        for name, values in self.plan.start.items():
            parameter = self.trained.get(name)
            if parameter is None or parameter.numel() != values.size:
                raise PareError(
                    f"the plan begins with {values.size} values of {name}, which it does not train so"
                )
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
            if name in self.slots:
                self.slots[name].synchronise()
            self._begun[name] = parameter.detach().clone()

    def _detach(self, model: nn.Module) -> None:
        if self._attached:
            self._attached.detach()
        for slot in self.slots.values():
            slot.release()
        with torch.no_grad():
            for name, original in self._originals.items():
                self.whole[name].copy_(original)
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._required_grad.get(name, False))

    def _replicate_for_data_parallel(self) -> nn.Module:
        raise PareError(
            "torch.nn.DataParallel copies weights without the way back to what is trained of them; on "
            "several GPUs start with torchrun or accelerate launch, or show one: CUDA_VISIBLE_DEVICES=0"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: the weights hold the values."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the values follow the weights."""


def _family(model: nn.Module) -> dict[str, str]:
    """What transformers calls the model's family, where it is one of transformers."""
    name = getattr(getattr(model, "config", None), "model_type", None)
    return {"model_type": name} if name else {}


def _parameter_name(tensor: str) -> str:
    return tensor.replace(".", "/")


def _shared(old: np.ndarray, new: np.ndarray, slot: Slot) -> tuple[Tensor, Tensor]:
    """Places in two sorted lists of flat indices of what is in both."""
    _, old_at, new_at = np.intersect1d(old, new, assume_unique=True, return_indices=True)
    device = slot.values.device
    return torch.from_numpy(old_at).to(device), torch.from_numpy(new_at).to(device)


def attach(model: nn.Module, plan: Plan, check: bool = True) -> nn.Module:
    """Make a model tunable under a plan; everything else is frozen.

    The model itself is changed and returned. Trainer, TRL, accelerate and a bare loop over
    ``[p for p in model.parameters() if p.requires_grad]`` train exactly what the plan selects. Afterwards
    ``model.delta()`` gives what was trained, ``model.paretune`` the details, and :func:`detach` the base
    model, bit for bit.

    Args:
        model: The base model, with the weights the plan was made for.
        plan: What to train.
        check: Compare the digest of the model's weights with the plan's; off only where the caller has just
            made the plan from this very model.

    Raises:
        PareError: The plan is for other weights or shapes, names an unknown tensor or module, or a plan is
            attached already; the model is left as it was.
    """
    if hasattr(model, "paretune"):
        raise PareError("a plan is attached to this model already; call paretune.detach(model) first")
    _check_fits(model, plan, check)
    mark_head(model, [selection.tensor for selection in plan.head])
    tunable = Tunable(model, plan)
    try:
        tunable._attach(model)
    except BaseException:
        tunable._detach(model)
        raise
    model.add_module("paretune", tunable)
    model.delta = _DeltaOf(model)  # type: ignore[assignment]
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take the plan off again: the base model as it was before :func:`attach`, bit for bit.

    Raises:
        PareError: No plan is attached.
    """
    tunable = getattr(model, "paretune", None)
    if not isinstance(tunable, Tunable):
        raise PareError("no plan is attached to this model; attach one with paretune.attach(model, plan)")
    del model.paretune
    del model.delta
    tunable._detach(model)
    return model


class _DeltaOf:
    """``model.delta()``: bound to the model, and to its copy when the model is copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, **info: Any) -> Delta:
        """The trained values as a delta.

        Args:
            info: Anything JSON to keep in the file (scores, settings).
        """
        return self.model.paretune.delta(self.model, info)  # type: ignore[operator,union-attr]


def _check_fits(model: nn.Module, plan: Plan, check_digest: bool) -> None:
    parameters = dict(model.named_parameters())
    for selection in (*plan.selections, *plan.head):
        name = selection.tensor
        if name not in parameters:
            raise PareError(f"the plan trains {name!r}, which this {type(model).__name__} does not have")
        if tuple(parameters[name].shape) != tuple(selection.shape):
            raise PareError(
                f"the plan trains {name!r} with shape {tuple(selection.shape)}, this model has "
                f"{tuple(parameters[name].shape)}; load the model the plan was made for ({plan.base.model})"
            )
    if not check_digest:
        return
    digest = base_digest(model, [selection.tensor for selection in plan.head])
    if digest != plan.base.digest:
        raise PareError(
            f"the plan was made for {plan.base.model} in {plan.base.dtype} (weights "
            f"{plan.base.digest[:12]}), this model has other weights ({digest[:12]}); load that model in "
            "that dtype, or choose again"
        )
