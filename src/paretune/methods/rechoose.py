"""Choose again under changed weights: what a plan's own method says of the model as it is now."""

from dataclasses import replace

import numpy as np
from torch import nn

from paretune.anatomy import anatomy
from paretune.errors import PareError
from paretune.methods.base import Question
from paretune.methods.choose import candidates_of, make_method, places_of
from paretune.plan import Plan
from paretune.task import Task


def rechoose(plan: Plan, model: nn.Module, task: Task, step: int) -> Plan:
    """The plan of the same method, settings and budget for the model's current weights.

    Args:
        plan: The plan so far; it stays a plan for its base, whatever the model holds now.
        model: The plain model with its current weights, no plan attached; left bit-equal.
        task: The data; only its training part is looked at.
        step: How far training is. What the method draws (examples, a random mask) depends on it and on the
            plan's seed.

    Returns:
        The next plan, with how much of the mask stayed in ``notes["reselected"]``.

    Raises:
        PareError: The plan has no budget, is one of several workers' or was made by hand, or as the method's
            ``choose``.
    """
    if plan.budget is None:
        raise PareError("a plan without a budget, such as a further rung of a ladder, cannot be chosen again")
    if plan.settings.get("parts", 1) > 1:
        raise PareError(
            "disjoint masks of several workers cannot be chosen again one by one: they would overlap"
        )
    settings = {name: value for name, value in plan.settings.items() if name != "exclude"}
    method = make_method(plan.method, settings)
    # No part of the head is fresh any more: nothing is to be warmed up or treated apart on its account.
    parts = anatomy(model)
    parts = replace(parts, tensors=parts.body)
    seed = int(np.random.SeedSequence([plan.seed, step]).generate_state(1)[0])
    candidates = candidates_of(parts, plan.settings.get("exclude", []))
    k = plan.budget - (plan.head_count if plan.head_rule == "inside" else 0)
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        choice = method.choose(Question(model, task, parts, candidates, k, seed))
    finally:
        for module, mode in training:
            module.training = mode
    found = replace(
        plan,
        selections=choice.selections,
        additions=choice.additions,
        places=places_of(parts, choice),
        notes=choice.notes,
        others=(),
    )
    chosen = sum(selection.count for selection in found.selections)
    stayed = {"step": step, "kept": _kept(plan, found), "of": chosen}
    return replace(found, notes={**found.notes, "reselected": [*plan.notes.get("reselected", []), stayed]})


def _kept(before: Plan, after: Plan) -> int:
    """How many entries two masks share."""
    old = {selection.tensor: selection.flat() for selection in before.selections}
    return sum(
        len(np.intersect1d(old[selection.tensor], selection.flat(), assume_unique=True))
        for selection in after.selections
        if selection.tensor in old
    )
