"""A new head starts at what the labels say without the texts: their mean, or how often each class comes.

With a bias of zero the first steps have to move every output there. All trained weights take part, and what
told the texts apart is lost meanwhile: a model that then gives every text one answer needs hundreds of steps
to leave it (docs/results/head_start.md).
"""

import datasets
import torch
from transformers import PreTrainedModel

from paretune.task.collate import Collator
from paretune.task.kinds import Kind

CLOSE = 0.05  # of the largest shift: outputs in bf16 are rounded


@torch.no_grad()
def start_at_prior(
    model: PreTrainedModel, kind: Kind, classes: int, rows: datasets.Dataset, collate: Collator
) -> None:
    """Set the output bias of a new head to the logits of the labels' distribution.

    The bias is found by what it does: of the parameters that the checkpoint did not hold, the one that moves
    every logit by as much as itself. A head without one (``score`` of Llama) and a head that the checkpoint
    holds are left alone, and with as many rows of each class nothing changes.

    Args:
        model: Just loaded, on the CPU, in evaluation mode.
        kind: What its outputs are.
        classes: How many there are; nothing for other kinds.
        rows: The training rows.
        collate: Rows to a batch.
    """
    prior = kind.prior(rows["labels"][:], classes)
    if prior is None or not prior.any():
        return
    batch = collate([rows[0]])
    for name in getattr(model, "paretune_head", ()):
        bias = model.get_parameter(name)
        if bias.shape != prior.shape:
            continue
        start, before = bias.clone(), _logits(model, kind, batch)
        bias.copy_(torch.from_numpy(prior))
        wanted = (bias - start).to(before.dtype)
        moved = _logits(model, kind, batch) - before
        if torch.allclose(moved, wanted.expand_as(moved), rtol=0, atol=CLOSE * float(wanted.abs().max())):
            return
        bias.copy_(start)


def _logits(model: PreTrainedModel, kind: Kind, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of one batch; a model that draws numbers (Reformer's hashing) draws the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.logits(model, batch)
