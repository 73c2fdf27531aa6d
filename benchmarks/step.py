"""Time and memory of one training step, against peft and full fine-tuning in the same run.

    python -m benchmarks.step --quick

One case (the built-in encoder, 0.5 %, 32 x 48 tokens, fp32): a table and, as the last line, JSON. The
variants of `benchmarks.step_variants` take turns, one step each a round, so that a change of the machine's
speed meets all of them; ratios are taken round by round and their median is reported. With one thread times
are processor time, which other work does not count into; with several the clock's. Every memory figure comes
from a process of its own: the peak during the steps, above what there was with everything imported and no
model loaded. `time_vs_*` and `memory_vs_*` are those of a FISH mask of single entries;
`lora` is the faster of LoRA on query and value and LoRA on all linear layers.

    python -m benchmarks.step

All cases (shares, precisions, shapes of batches, models), written line by line into docs/results/step.jsonl,
where those that are there already are not measured again, and as a table into docs/performance.md.

    python -m benchmarks.step --growth

Larger and larger Llama-shaped models in bf16 with recomputed activations at 0.1 %, likewise.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, peak_resident, reset_peak, resident
from benchmarks.step_variants import GRANULARITIES, VARIANTS, Case, TooSmallError, choose_masks
from benchmarks.tables import RESULTS, append, publish, read
from paretune.progress import set_quiet

LORAS = ("lora_query_value", "lora_all_linears")
CASES = (
    Case(),
    Case(precision="amp"),
    *(Case("25M", batch=4, length=128, precision=precision) for precision in ("fp32", "bf16")),
    *(Case(share=share) for share in (0.0002, 0.001, 0.02)),
    *(Case(batch=batch, length=length) for batch, length in ((8, 16), (8, 128))),
    *(Case(share=share, precision="amp") for share in (0.0002, 0.001, 0.02)),
)
GROWING = ("25M", "100M", "400M", "1100M")
GROWTH_VARIANTS = ("entries", "rows", "lora_query_value", "lora_all_linears")


class Stepper:
    """One variant, ready to step."""

    def __init__(self, variant: str, case: Case, masks: Path) -> None:
        model = case.load()
        self.batch = next(iter(case.task(model, case.batch).batches("train", case.batch, range(case.batch))))
        self.model = VARIANTS[variant](model, case, masks)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.amp = case.precision == "amp"

    def step(self) -> float:
        """One forward, backward and optimiser step; its seconds."""
        start = _now()
        with torch.autocast(self.batch["input_ids"].device.type, torch.bfloat16, enabled=self.amp):
            loss = self.model(**self.batch).loss
        loss.backward()
        if self.optimiser:
            self.optimiser.step()
            self.optimiser.zero_grad()
        return _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def times(case: Case, names: Sequence[str], masks: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds a step, by variant, round by round."""
    steppers = {name: Stepper(name, case, masks) for name in names}
    for stepper in steppers.values():
        stepper.step()
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            seconds[name].append(steppers[name].step())
    print(f"\n{case}\n{'':<18}{'trained':>12}{'s/step':>10}")
    for name, stepper in steppers.items():
        print(f"{name:<18}{stepper.trained:>12,}{statistics.median(seconds[name]):>10.3f}", flush=True)
    return seconds


def in_own_process(case: Case, variant: str, masks: Path) -> dict[str, Any]:
    """Peak bytes and seconds of a variant's steps in a process that has done nothing else but imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.step"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(alone, (variant, case, masks))


def alone(variant: str, case: Case, masks: Path) -> dict[str, Any]:
    """In the process of its own: peak above what there is without a model, and the median of its steps."""
    set_quiet(True)
    before = resident()
    stepper = Stepper(variant, case, masks)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak()
    seconds = [stepper.step() for _ in range(4)]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident() - before
    weights = sum(p.numel() * p.element_size() for p in stepper.model.parameters() if not p.requires_grad)
    return {
        "peak_bytes": peak,
        "weights_bytes": weights,
        "trained": stepper.trained,
        "seconds": statistics.median(seconds[1:]),
    }


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Time and memory of every variant that the case allows."""
    with tempfile.TemporaryDirectory(prefix="paretune-") as folder:
        masks = Path(folder)
        choose_masks(case, masks)
        names = [name for name in VARIANTS if _possible(name, case, masks)]
        memory = {name: in_own_process(case, name, masks)["peak_bytes"] for name in names}
        seconds = times(case, names, masks, rounds)
    for name, peak in memory.items():
        print(f"{name:<18} peak {peak / 2**20:,.0f} MiB")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    others = {"floor": "floor", "full": "full", "shira": "shira"}
    loras = [name for name in LORAS if name in names]
    if loras:
        others["lora"] = min(loras, key=lambda name: medians[name])
    result: dict[str, Any] = {}
    for short, other in others.items():
        for name in (*GRANULARITIES, "everywhere"):
            turns = zip(seconds[name], seconds[other], strict=True)
            result[f"{name}_time_vs_{short}"] = statistics.median(a / b for a, b in turns)
            result[f"{name}_memory_vs_{short}"] = memory[name] / memory[other]
    # What single entries need goes by the short names.
    result |= {key.removeprefix("entries_"): value for key, value in result.items()}
    return result | {
        "faster_lora": others.get("lora"),
        "seconds": medians,
        "memory_bytes": memory,
        "case": case.row,
        "rounds": rounds,
        "machine": describe(),
    }


def _possible(name: str, case: Case, masks: Path) -> bool:
    """Whether a variant has a size within the share."""
    try:
        VARIANTS[name](case.load(), case, masks)
    except TooSmallError as problem:
        print(problem)
        return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The cases as a table in Markdown: a step's time and memory as ratios."""
    columns = {
        "entries / floor": "time_vs_floor",
        "/ LoRA": "time_vs_lora",
        "/ SHiRA": "time_vs_shira",
        "/ full": "time_vs_full",
        "rows / floor": "rows_time_vs_floor",
        "rows / LoRA": "rows_time_vs_lora",
        "blocks / LoRA": "blocks_time_vs_lora",
        "memory / LoRA": "memory_vs_lora",
        "memory / SHiRA": "memory_vs_shira",
        "memory / full": "memory_vs_full",
    }
    lines = [
        f"| model | trained | batch | precision | {' | '.join(columns)} |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for row in rows:
        case = Case(**row["case"])
        figures = (row.get(key) for key in columns.values())
        lines.append(
            f"| {case.model} | {case.share:.2%} | {case.batch} x {case.length} | {case.precision} | "
            + " | ".join("-" if figure is None else f"{figure:.2f}" for figure in figures)
            + " |"
        )
    machine = rows[-1]["machine"]
    where = (
        f"{machine['cpu']}, {machine['device']}, {machine['threads']} thread(s), PyTorch {machine['torch']}"
    )
    return "\n".join([*lines, "", f"{where}. A dash: LoRA has no rank that small.", ""])


def growth_table(rows: Sequence[dict[str, Any]]) -> str:
    """Time and memory against size, with the fitted growth."""
    lines = ["| parameters | variant | trained | step | peak | a parameter |", "|---|---|---|---|---|---|"]
    for row in rows:
        size = row["weights_bytes"] / 2
        lines.append(
            f"| {size / 1e6:,.0f} M | {row['variant'].replace('_', ' ')} | {row['trained']:,} "
            f"| {row['seconds']:.2f} s | {row['peak_bytes'] / 2**20:,.0f} MiB "
            f"| {row['peak_bytes'] * 2 / row['weights_bytes']:.2f} bytes |"
        )
    fits = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        some = [row for row in rows if row["variant"] == variant]
        if len(some) > 1:
            first, last = some[-2], some[-1]
            grown = last["peak_bytes"] - first["peak_bytes"]
            more = (last["weights_bytes"] - first["weights_bytes"]) / 2
            name = variant.replace("_", " ")
            fits.append(f"* {name}: {grown / more:.2f} bytes for each further parameter (the last two sizes)")
    return "\n".join([*lines, "", *fits, ""])


def grow() -> None:
    """The growth's rows, each in a process of its own."""
    rows = read(RESULTS / "step_growth.jsonl")
    for model in GROWING:
        case = Case(model, 0.001, batch=2, length=128, precision="bf16", checkpointing=True)
        missing = [
            name
            for name in GROWTH_VARIANTS
            if not any(r["variant"] == name and r["case"] == case.row for r in rows)
        ]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="paretune-") as folder:
            choose_masks(case, Path(folder))
            for name in missing:
                if not _possible(name, case, Path(folder)):
                    continue
                found = in_own_process(case, name, Path(folder))
                row = {"variant": name, **found, "case": case.row, "machine": describe()}
                append(row, RESULTS / "step_growth.jsonl")
                rows.append(row)
                print(json.dumps(row), flush=True)
    publish("step growth: python -m benchmarks.step --growth", growth_table(rows))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one case, few rounds")
    parser.add_argument("--growth", action="store_true", help="larger and larger models instead")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    set_quiet(True)
    if options.growth:
        grow()
        return
    if options.quick:
        print(json.dumps(measure(Case(), options.rounds or 5)))
        return
    rows = read(RESULTS / "step.jsonl")
    for case in CASES:
        if not any(row["case"] == case.row for row in rows):
            rows.append(measure(case, options.rounds or 11))
            append(rows[-1], RESULTS / "step.jsonl")
        publish("step: python -m benchmarks.step", table(rows))
    print(json.dumps(rows[0]))


if __name__ == "__main__":
    main()
