"""What the machinery of the front costs beside its trials, what workers bring, and what a run spends.

``python -m benchmarks.front --quick`` (last line JSON): ``overhead`` is the time of a front in this process
that is no trial's, as a share of the trials' own; ``speedup_two_workers`` the wall time of the same trials in
one worker process over that in two, with one thread each and the processes started before;
``front_equivalents`` and ``auto_equivalents`` the whole trainings that a default front and a default ``auto``
were worth, by their own count (trials by steps, ``auto``'s evidence by examples). A made-up task and a small
random BERT. Nothing else may run on the machine while it measures.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.machine import describe
from paretune.progress import set_quiet
from paretune.search.auto import auto
from paretune.search.engines import Workers
from paretune.search.field import FIELD
from paretune.search.front import front
from paretune.search.front_trial import FrontSpec, FrontTrial
from paretune.search.jobs import Job, Scored
from paretune.search.ration import Limits
from paretune.task import Task
from paretune.tuning import Recipe

WORDS = ("the", "of", "a", "model", "data", "first", "second", "large", "small", "value", "layer", "weight")
BUDGET = "5%"  # of a small model: so that every method has something to train
CHEAP = ("head", "bitfit", "random")  # for the overhead: trials that say nothing of evidence


def small_task(folder: Path, width: int, examples: int) -> Task:
    """A small random BERT that knows a few words, and sentences of them in random order."""
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "no", "yes", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 4 * width}
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=4, max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder)
    rng = np.random.default_rng(0)

    def rows(count: int) -> list[dict[str, str]]:
        labels = [("no", "yes")[number % 2] for number in range(count)]
        return [{"text": " ".join((label, *rng.choice(WORDS, 20))), "label": label} for label in labels]

    return Task.from_rows(rows(examples), rows(64), model=folder, heldout=0.2)


class Desk:
    """Counts results."""

    def __init__(self) -> None:
        self.results: list[Scored] = []

    def begin(self, job: Job) -> int:
        """A trial runs."""
        return 0

    def finish(self, trial: int, job: Job, scored: Scored) -> None:
        """It has a result."""
        self.results.append(scored)

    def give_up(self, trial: int, reason: str) -> None:
        """A trial that loses its worker would make the figure wrong."""
        raise RuntimeError(reason)

    def refuse(self, trial: int, job: Job, reason: str) -> None:
        """As :meth:`give_up`."""
        raise RuntimeError(reason)


def overhead(task: Task, out: Path, steps: int) -> dict[str, float]:
    """A front's time beside its trials, as a share of theirs."""
    recipe = Recipe(lr=1.0, steps=steps, batch_size=16)
    start = time.perf_counter()
    result = front(task, out, methods=CHEAP, budgets=(BUDGET,), recipe=recipe, limits=Limits(trials=14))
    seconds = time.perf_counter() - start
    trials = result["cost"]["trial_seconds"]
    return {"overhead": (seconds - trials) / trials, "trials": result["cost"]["trials"], "seconds": seconds}


def speedup(task: Task, out: Path, steps: int, trials: int) -> dict[str, float]:
    """The same trials in one worker and in two, each warm."""
    seconds = {}
    for workers in (1, 2):
        objective = FrontTrial(
            task, Recipe(lr=1.0, steps=steps, batch_size=16), out / str(workers), threads=1
        )
        engine = Workers(objective, workers)
        try:
            engine.run(_jobs(workers, 0.1, "warm"), Desk())
            desk, start = Desk(), time.perf_counter()
            engine.run(_jobs(trials, 1.0, "timed"), desk)
            seconds[workers] = time.perf_counter() - start
        finally:
            engine.close()
        assert all(scored.score is not None for scored in desk.results)
    return {"speedup_two_workers": seconds[1] / seconds[2], "one_worker_seconds": seconds[1]}


def _jobs(count: int, share: float, name: str) -> Iterable[Job]:
    for number in range(count):
        spec = FrontSpec(f"{name} {number}", "random", {}, BUDGET, 1e-3, share, 0)
        yield spec.job


def default_front(task: Task, out: Path, steps: int) -> dict[str, Any]:
    """The whole trainings of a front with every default but the budget."""
    result = front(
        task, out, methods=FIELD, budgets=(BUDGET,), recipe=Recipe(lr=1.0, steps=steps, batch_size=4)
    )
    cost = result["cost"]
    return {"front_equivalents": cost["equivalents"], "front_trials": cost["trials"]}


def default_auto(task: Task, out: Path, steps: int) -> dict[str, Any]:
    """The whole trainings of ``auto``, evidence and the winner's training included."""
    recipe = Recipe(lr=1.0, steps=steps, batch_size=16)
    start = time.perf_counter()
    result = auto(task, out, budget=BUDGET, recipe=recipe)
    seconds = time.perf_counter() - start
    return {
        "auto_equivalents": result["auto"]["equivalents"]["total"],
        # The same by the clock, against the winner's training: fixed costs weigh on trainings this short.
        "auto_equivalents_by_time": seconds / result["seconds"]["train"],
    }


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short trials: about a minute")
    options = parser.parse_args()
    set_quiet(True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        task = small_task(base / "model", 64, 160)
        steps = 40 if options.quick else 200
        rounds = [overhead(task, base / f"overhead{n}", steps) for n in range(1 if options.quick else 3)]
        found |= rounds[0] | {"overhead": statistics.median(each["overhead"] for each in rounds)}
        found |= speedup(task, base / "speed", steps, 6 if options.quick else 20)
        found |= default_auto(task, base / "auto", 32 if options.quick else 200)
        found |= default_front(task, base / "front", 8 if options.quick else 100)
    print(json.dumps({**found, "machine": describe()}))


if __name__ == "__main__":
    main()
