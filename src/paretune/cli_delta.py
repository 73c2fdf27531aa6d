"""The ``paretune delta`` commands."""

import json
from argparse import Namespace
from pathlib import Path

from transformers import AutoTokenizer

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.plan_table import readable_bytes


def inspect(options: Namespace) -> None:
    """Print what is in a delta."""
    delta = Delta.load(options.file)
    print(json.dumps(delta.inspect(), indent=1) if options.json else delta)


def verify(options: Namespace) -> None:
    """Say whether a delta is whole and, with ``--model``, whether it fits that base."""
    delta = Delta.load(options.file)
    if options.model:
        Delta.verify(options.file, delta.load_base(options.model))
    print(
        f"{options.file}: whole, {delta.count:,} weights{', fits ' + options.model if options.model else ''}"
    )


def apply(options: Namespace) -> None:
    """Write base + delta as a checkpoint that transformers loads."""
    _refuse_existing(options.out)
    delta = Delta.load(options.file)
    model = delta.load_model(options.model, merge=True)
    model.save_pretrained(options.out)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(options.model or delta.base.model).save_pretrained(options.out)
    print(f"{options.out}: {type(model).__name__} with the delta applied")


def merge(options: Namespace) -> None:
    """Write one delta out of several of one base."""
    _refuse_existing(options.out)
    if len(options.file) < 2:
        raise PareError("give at least two deltas to merge")
    delta = Delta.merge([Delta.load(path) for path in options.file], options.overlap)
    delta.save(options.out)
    print(f"{options.out}: {delta.count:,} weights, {readable_bytes(options.out.stat().st_size)}")


def export(options: Namespace) -> None:
    """Write a peft adapter."""
    _refuse_existing(options.out)
    Delta.load(options.file).export_peft(options.out)
    print(f"{options.out}: load it with peft.PeftModel.from_pretrained(base, {str(options.out)!r})")


def _refuse_existing(path: Path) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise PareError(f"{path} is there already; give another --out")
