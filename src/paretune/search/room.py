"""A budget for a memory limit: what training the head alone leaves over, by what a trained weight takes."""

from collections.abc import Callable
from pathlib import Path

from paretune.anatomy import anatomy
from paretune.budget import HeadRule
from paretune.errors import PareError
from paretune.search.front_trial import FrontSpec, FrontTrial
from paretune.task import Task
from paretune.tuning import Recipe

A_WEIGHT = 16  # bytes: the value, its gradient and AdamW's two moments, in fp32
MOST = 0.05  # of the model; with room for more, full fine-tuning is the plain choice
SHARE = 1 / 64  # of the steps: memory does not grow after the first


def room_for(
    task: Task,
    recipe: Recipe,
    memory: int,
    plans: Path,
    say: Callable[[object], None],
    head: HeadRule = "outside",
) -> str:
    """A budget as text: how many weights can be trained within a number of bytes.

    The head alone is trained for a few steps and its peak measured; activations that single weights need are
    no part of that, so trials that pass the limit all the same are left out when they show it.

    Args:
        task: The data.
        recipe: How to train.
        memory: Bytes.
        plans: Folder for plans.
        say: Called with what was found.
        head: Whether the head is ``outside`` or ``inside`` the budget; its memory is measured either way.

    Raises:
        PareError: Not even the head can be trained within it, or there is no head to try.
    """
    trial = FrontTrial(task, recipe, plans, head)
    scored = trial(FrontSpec("head", "head", {}, None, 1e-3, SHARE, 0).job.spec)
    if scored.score is None:
        raise PareError(
            f"--for-memory: training the head alone failed ({scored.failed}), so there is nothing to go by; "
            "give --budget as well"
        )
    peak = scored.details["peak_bytes"]
    if peak >= memory:
        raise PareError(
            f"--for-memory: training the head alone takes {peak / 2**30:.2f} GiB, the limit is "
            f"{memory / 2**30:.2f} GiB; use a smaller --batch-size, --max-length, or --gradient-checkpointing"
        )
    parts = anatomy(task.load_model())
    count = min((memory - peak) // A_WEIGHT, int(MOST * parts.weights))
    if count < 1:
        raise PareError("--for-memory: there is no room for a single weight beside the head; ask for more")
    say(
        f"training the head alone takes {peak / 2**30:.2f} GiB; {memory / 2**30:.2f} GiB have room for "
        f"{count:,} trained weights beside the head"
    )
    return str(count + (parts.head_weights if head == "inside" else 0))
