"""What ``paretune tune`` says at its end, and which of its options do not go together."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.options import METHOD_FLAGS
from paretune.plan import Plan
from paretune.plan_table import readable_bytes

ONLY_AUTO = ("for_memory", "for_bytes", "minutes", "engine", "address", "trial_cpus", "trial_gpus")


@contextmanager
def talk_aside(as_json: bool) -> Iterator[None]:
    """With ``--json``, what libraries print while they work (trackio greets) goes to standard error."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def print_tuned(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print the result of a run."""
    if as_json:
        print(json.dumps(result))
        return
    inside = result.get("head_rule") == "inside"  # then they are among the trained weights
    head = f"({result['head']:,} of them the head's)" if inside else f"(+ {result['head']:,} of the head)"
    print(
        f"{result['metric']} {result['score']:.4f} on validation with {result['trained']:,} trained weights "
        f"{head}, lr {result['lr']:g}\n"
        f"{out / 'delta.safetensors'}: {readable_bytes(result['delta_bytes'])}"
    )


def refuse_only_auto(options: Namespace) -> None:
    """Refuse options that a single method has no use for.

    Raises:
        PareError: One was given.
    """
    given = [name for name in ONLY_AUTO if getattr(options, name) is not None]
    given += ["workers"] if options.workers != 1 else []
    if given:
        raise PareError(f"--{given[0].replace('_', '-')} goes with --method auto, not {options.method}")


def refuse_beside_plan(options: Namespace, plan: Plan) -> None:
    """Refuse options that say what to train, where a plan says it.

    Args:
        options: The parsed options.
        plan: The one of ``--plan``; to name its method again is no contradiction.

    Raises:
        PareError: One was typed.
    """
    flags = ("budget", "head", "exclude", "set", *(flag for flag, *_ in METHOD_FLAGS))
    given = [flag for flag in flags if flag.replace("-", "_") in options.typed]
    given += ["method"] if "method" in options.typed and options.method != plan.method else []
    if given:
        raise PareError(
            f"--{given[0]}: what is trained stands in --plan {options.plan} (method {plan.method}); "
            "leave it out, or choose another plan with `paretune choose`"
        )
