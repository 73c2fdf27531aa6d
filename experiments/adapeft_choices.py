"""How far AdaPEFT's choice agrees across seeds, horizons and depths: kept by the line, compared later."""

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.runner import load_task, read
from paretune.methods import choose

HORIZONS = (0.01, 0.05, 0.1, 0.5)
DEPTHS = (0.34, 0.67)
BASE = "pretrained weights"


def looks(task: str, seed: int, budget: str, samples: int | None) -> list[dict[str, Any]]:
    """What to look at under one seed: at the pretrained weights, at horizons, at shallow copies."""
    extra: dict[str, Any] = {"samples": samples} if samples else {}
    settings: dict[str, dict[str, Any]] = {BASE: {}}
    settings |= {f"horizon {share:.0%}": {"horizon": share} for share in HORIZONS}
    settings |= {f"depth {depth:.0%}": {"probe_depth": depth} for depth in DEPTHS}
    return [
        {"task": task, "seed": seed, "budget": budget, "what": what, "settings": extra | setting}
        for what, setting in settings.items()
    ]


def run_looks(wanted: Iterable[dict[str, Any]], path: Path) -> None:
    """Take the choices that are not in the file yet, one line each."""
    done = {json.dumps(row["look"], sort_keys=True) for row in read(path)}
    for look in wanted:
        if json.dumps(look, sort_keys=True) in done:
            continue
        task = load_task(look["task"], 0)
        model = task.load_model(seed=look["seed"])
        plan = choose("adapeft", model, task, look["budget"], seed=look["seed"], **look["settings"])
        table = sorted(plan.notes["table"]["rows"], key=lambda row: row[2])  # by the item's name
        row = {
            "look": look,
            "counts": [count for _, _, _, count, _, _ in table],
            "gains": [float(f"{gain or 0:.4g}") for _, _, _, _, gain, _ in table],
            "taken": "".join(mark or "-" for _, mark, *_ in table),
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{look['task']} s{look['seed']} {look['what']}", flush=True)


def compared(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """By task and what differs: mean rank correlation of the gains per weight, mean overlap of what is taken.

    Seeds are compared with each other, everything else with the look at the pretrained weights of its seed.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for task in dict.fromkeys(row["look"]["task"] for row in rows):
        of_task = [row for row in rows if row["look"]["task"] == task]
        base = {row["look"]["seed"]: row for row in of_task if row["look"]["what"] == BASE}
        pairs = {"seeds": list(combinations(base.values(), 2))}
        for row in of_task:
            if row["look"]["what"] != BASE and row["look"]["seed"] in base:
                pairs.setdefault(row["look"]["what"], []).append((base[row["look"]["seed"]], row))
        found[task] = {
            what: [mean(values) for values in zip(*(_agreement(*pair) for pair in those), strict=True)]
            for what, those in pairs.items()
            if those
        }
    return found


def _agreement(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Rank correlation of gains per weight; weights taken by both, over those of the larger choice."""
    counts = np.array(one["counts"])
    rank = float(spearmanr(*(np.array(each["gains"]) / counts for each in (one, other)))[0])
    taken = [np.array([mark == "*" for mark in each["taken"]]) for each in (one, other)]
    return rank, float(counts[taken[0] & taken[1]].sum() / max(1, *(counts[each].sum() for each in taken)))
