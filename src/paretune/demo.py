"""The whole story on built-in data: methods side by side at one budget, a table, maps, a proof, and a front.

Every method is tuned by the real command line in a process of its own, so that its peak memory is its own
and what is shown is what one would type. Called again, finished runs are read back and an interrupted one
goes on.
"""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from paretune.anatomy import base_digest
from paretune.delta import Delta
from paretune.errors import PareError
from paretune.plan import Plan
from paretune.plan_table import front_table, readable_bytes
from paretune.search.front_file import read_front
from paretune.search.front_table import front_table as candidate_table
from paretune.task import Task
from paretune.task.demo import model_folder, write_data

BUDGET = "0.5%"
EPOCHS = 2
# Method and learning rate: of the lowest loss on the held-out part of train (experiments/demo_rates.py).
RUNS: tuple[tuple[str, str], ...] = (
    ("head", "1e-1"),
    ("lora", "5e-3"),
    ("random", "1.5e-2"),
    ("fish", "5e-3"),
    ("ird", "5e-3"),
    ("adapeft", "1e-2"),
    ("s4", "5e-3"),
)
# IRD starts from eight times as many examples, which is a third of what fish looks at.
SETTINGS: dict[str, dict[str, int]] = {"ird": {"samples": 32}}
FRONT = ("lora", "random")  # against each other under several seeds, at the end
FRONT_STEPS, FRONT_TRIALS, FRONT_SEEDS = 20, 12, 3  # a whole training there; in all; of what goes to the end
MAPPED = ("fish", "adapeft", "s4")  # whose plans are shown
SHOWN = 66  # most characters of an example
PRELOADED = ["paretune.cli", "paretune.methods", "paretune.search.tune", "paretune.search.front"]
LOSS_TOLERANCE = 1e-4  # relative: libraries may add up in another order when memory lies differently
OTHER_SEED = 1  # the fresh base's head starts elsewhere, so the delta must bring the trained one


def run(out: Path) -> None:
    """Tell the story.

    Args:
        out: Folder for the data and one run folder a method.

    Raises:
        PareError: The built-in encoder or a package's sources are missing, a command failed, or a delta does
            not give its score again.
    """
    model = model_folder()
    files = write_data(out / "data")
    _show_task(*files)
    print(f"\n{len(RUNS)} ways to train it, at a budget of {BUDGET} of the model's weights\n")
    print(f"  MODEL={shlex.quote(str(model))}")
    results = [_tune(method, rate, model, files, out / method) for method, rate in RUNS]
    print(f"\n{table(results)}")
    for method in MAPPED:
        print(f"\nWhat {method} chose\n\n{_shown(Plan.load(out / method / 'plan'))}")
    print("\nEach delta on a fresh copy of the untouched model\n")
    task = Task.from_files(*files, model=model)
    for result in results:
        print(f"  {prove(task, out / result['method'] / 'delta.safetensors', result)}", flush=True)
    print(
        "\nWhich to take? Short trials under several seeds, scored on the held-out part of train", flush=True
    )
    _front(model, files, out / "front")
    page = out / "front" / "report.html"
    if page.exists():
        print(f"\nThe same as a page, to be opened in a browser: {page}")
    print(f"\nEverything is in {out}: plans, deltas, results. With your own data:")
    print("  paretune tune --model MODEL --train TRAIN.jsonl --validation VALIDATION.jsonl \\")
    print(f"      --method fish --budget {BUDGET} --lr sweep --out RUN")


def _show_task(train: Path, validation: Path) -> None:
    """What is to be learnt, with a few examples."""
    rows, held = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (train, validation)
    )
    counts = Counter(row["label"] for row in held)
    print(f"The task: does a docstring's first paragraph describe a {' or a '.join(sorted(counts))}?")
    print(f"{len(rows):,} texts of installed packages in {train}, {len(held):,} in {validation}\n")
    for label in sorted(counts):
        text = next(row["text"] for row in rows if row["label"] == label and len(row["text"]) <= SHOWN)
        print(f"  {label:<10}{text}")
    print(f"\nAlways giving the same answer would score {max(counts.values()) / len(held):.3f}.")


def _shown(plan: Plan) -> str:
    """Costs, map and predicted front; not the model's path, the settings and the list of items."""
    without = replace(plan, settings={}, notes={})
    lines = str(without).splitlines()[1:]
    return "\n".join([*lines, "", *front_table(plan)] if "front" in plan.notes else lines)


def _tune(method: str, rate: str, model: Path, files: tuple[Path, Path], out: Path) -> dict[str, Any]:
    """Show a command, run it in a process of its own, and read its result."""
    lines = (
        ["--method", method, *_set(method), "--budget", BUDGET],
        ["--lr", rate, "--epochs", str(EPOCHS), *_precision()],
        ["--train", str(files[0]), "--validation", str(files[1])],
        ["--out", str(out)],
    )
    shown = " \\\n    ".join(["paretune tune --model $MODEL", *map(shlex.join, lines)])
    print(f"\n$ {shown}", flush=True)
    said = call(["tune", "--model", str(model), *itertools.chain(*lines)])
    print("\n".join(said.splitlines()[-3:]), flush=True)
    return json.loads((out / "result.json").read_text())


def _front(model: Path, files: tuple[Path, Path], out: Path) -> None:
    """Show a command, run it in a process of its own, and print its table and its advice."""
    size = ["--steps", str(FRONT_STEPS), "--trials", str(FRONT_TRIALS), "--seeds", str(FRONT_SEEDS)]
    lines = (
        ["--methods", *FRONT, "--budgets", BUDGET, *size, *_precision()],
        ["--train", str(files[0]), "--validation", str(files[1])],
        ["--out", str(out)],
    )
    shown = " \\\n    ".join(["paretune front --model $MODEL", *map(shlex.join, lines)])
    print(f"\n$ {shown}", flush=True)
    call(["front", "--model", str(model), *itertools.chain(*lines)])
    print(f"\n{candidate_table(read_front(out))}", flush=True)


def _set(method: str) -> list[str]:
    """A method's settings, as one types them."""
    words = [f"{name}={value}" for name, value in SETTINGS.get(method, {}).items()]
    return ["--set", *words] if words else []


def _precision() -> list[str]:
    """bf16 autocast where the machine multiplies in it, which takes half the time; else fp32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = torch.cuda.is_available() or any(known[name] for name in known if name.endswith("bf16"))
    return ["--precision", "amp"] if fast else []


def call(arguments: Sequence[str]) -> str:
    """Run a paretune command in a process of its own, offline; its progress bars are seen.

    The process is a copy of one that has imported everything and done nothing else: imports cost seconds.

    Returns:
        What it printed.

    Raises:
        PareError: It failed; it has said why.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the copies' imports, this process has had its own
    try:
        with ProcessPoolExecutor(1, mp_context=_copies()) as process:
            status, said = process.submit(_call, list(arguments)).result()
    except BrokenProcessPool as end:
        raise PareError("the command above was killed") from end
    if status:
        raise PareError(f"the command above failed with exit status {status}; it has said why")
    return said


def _copies() -> BaseContext:
    """Processes that start with the imports done; a system without fork starts them from nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _call(arguments: list[str]) -> tuple[int | str | None, str]:
    """The exit status of a command in this process, and what it printed."""
    from paretune.cli import main  # the command line lies above

    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            status: int | str | None = main(arguments)
        except SystemExit as end:  # the parser's
            status = end.code
    return status, said.getvalue()


def table(results: Sequence[dict[str, Any]]) -> str:
    """The runs side by side, in 80 columns."""
    names = ("method", results[0]["metric"], "trained", "head", "seconds", "peak memory", "delta")
    rows = [
        (
            result["method"],
            f"{result['score']:.3f}",
            f"{result['trained']:,}",
            f"{result['head']:,}",
            f"{sum(result['seconds'].values()):.0f}",
            readable_bytes(result["peak_bytes"]),
            readable_bytes(result["delta_bytes"]),
        )
        for result in results
    ]
    first, *others = zip(names, *rows, strict=True)
    columns = [[f"{cell:<10}" for cell in first]]
    columns += [[f"{cell:>{max(map(len, column)) + 2}}" for cell in column] for column in others]
    return "\n".join("".join(line).rstrip() for line in zip(*columns, strict=True))


def prove(task: Task, path: Path, result: dict[str, Any]) -> str:
    """Apply a delta to a freshly loaded base, score it, and take it off again.

    Returns:
        What was found, as one line.

    Raises:
        PareError: The score is another, or the base is not what it was.
    """
    delta = Delta.load(path)
    base = task.load_model(seed=OTHER_SEED)
    before = base_digest(base, [])
    with delta.apply(base):
        scores = task.score(base)
    score, reported = scores[task.metric], result["score"]
    if score != reported or not math.isclose(
        scores["loss"], result["scores"]["loss"], rel_tol=LOSS_TOLERANCE
    ):
        raise PareError(
            f"{path} scores {score} with a loss of {scores['loss']}, its run reported {reported} and "
            f"{result['scores']['loss']}; remove {path.parent}"
        )
    if base_digest(base, []) != before:
        raise PareError(f"{path}: the base is not what it was after taking the delta off")
    name = result["method"]
    return f"{name:<8} reported {reported:.4f}, again {score:.4f}; taken off, every bit is back"
