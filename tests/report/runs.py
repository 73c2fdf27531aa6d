"""Run folders for tests: a front as `paretune front` leaves it, from real plans of a tiny model."""

import json
import random
from pathlib import Path
from typing import Any

from paretune.methods import choose
from paretune.plan import Plan
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl

METHODS = ("fish", "ird", "random", "lora", "bitfit", "full", "gradient", "magnitude", "adapter", "head")
CAUSE = "the loss was not finite at step 12; use a smaller --lr"
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>%{x}\'"&\u2028'


def tiny_plans(folder: Path) -> dict[str, Plan]:
    """Plans of a tiny BERT by real methods; IRD's with the samples it kept."""
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    task = Task.from_files(folder / "train.jsonl", model=tiny_model("bert", folder / "bert", blocks=3))
    model = task.load_model()
    return {
        "fish": choose("fish", model, task, "5%", samples=16),
        "ird": choose("ird", model, task, "5%", samples=8, steps=2),
        "lora": choose("lora", model, task, "5%"),
        "bitfit": choose("bitfit", model, task),
        "random": choose("random", model, task, "5%"),
    }


def front_document(trials: int = 100, seed: int = 0) -> dict[str, Any]:
    """A ``front.json`` of about so many trials: methods x budgets x rates x seeds, some of them failed."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    candidates = []
    budgets = ("0.1%", "0.5%", "2%")
    for method in METHODS:
        for budget in (None,) if method in ("bitfit", "full", "head") else budgets:
            share = {None: 0.01, "0.1%": 0.001, "0.5%": 0.005, "2%": 0.02}[budget]
            share = {"full": 1.0, "head": 0.0}.get(method, share)
            trained = round(22_713_216 * share)
            name = f"{method} {budget or 'all of it'}"
            truth = 0.72 + 0.025 * (share * 1000 + 0.2) ** 0.25 + rng.gauss(0, 0.012)
            settings = {"samples": 1024, "labels": "data"} if method in ("fish", "ird") else {}
            common = {"candidate": name, "method": method, "settings": settings, "budget": budget}
            command = (
                "paretune tune --model MODEL --train train.jsonl --validation validation.jsonl "
                f"--method {method}"
                f"{'' if budget is None else f' --budget {budget}'} --steps 500 --lr 5e-4 --seed 0 --out run"
            )
            plan = f"plans/{method if method in ('fish', 'ird', 'lora', 'bitfit', 'random') else 'fish'}"
            scores = []
            for n, (lr, worth) in enumerate(((1e-4, -0.03), (5e-4, 0.0), (2e-3, -0.02))):
                for each in range(3 if lr == 5e-4 else 1):
                    failed = method == "full" and lr == 2e-3
                    score = None if failed else truth + worth + rng.gauss(0, 0.006)
                    if lr == 5e-4:
                        scores.append(score)
                    losses = [
                        [20 * k, 0.3 + 0.4 * 2.7 ** (-k / 6) + rng.gauss(0, 0.01)] for k in range(1, 21)
                    ]
                    rows.append(
                        common
                        | {"id": f"{name}|{n}|{each}", "lr": lr, "share": 1.0, "seed": each}
                        | {"split": "heldout", "state": "failed" if failed else "finished", "score": score}
                        | {"scores": {"f1": score}, "losses": [] if failed else losses, "trained": trained}
                        | {"head": 770, "delta_bytes": 5 * trained + 4000, "peak_bytes": 900_000_000}
                        | {"step_seconds": 0.2, "seconds": 80.0, "plan": plan, "command": command}
                        | {
                            "failed": "the loss was not finite at step 12; use a smaller --lr"
                            if failed
                            else ""
                        }
                    )
            mean = sum(scores) / 3
            candidates.append(
                common
                | {"name": name, "lr": 5e-4, "share": 1.0, "n": 3, "score": mean, "low": mean - 0.012}
                | {"high": mean + 0.012, "trained": trained, "head": 770, "delta_bytes": 5 * trained + 4000}
                | {"peak_bytes": round(9e8 + 30 * trained), "step_seconds": rng.uniform(0.15, 0.4)}
                | {
                    "on_front": False,
                    "predicted": mean + rng.gauss(0, 0.01),
                    "plan": plan,
                    "command": command,
                }
            )
    best = -1.0
    for candidate in sorted(candidates, key=lambda c: (c["trained"], -c["score"])):
        candidate["on_front"] = candidate["score"] > best
        best = max(best, candidate["score"])
    chosen = max(candidates, key=lambda c: (c["on_front"], c["score"] - 0.01 * (c["trained"] > 2e6)))
    return {
        "schema": 1,
        "status": "finished",
        "request": {
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "data": "49f14eb6082f",
            "metric": "f1",
            "higher_is_better": True,
            "methods": list(METHODS),
            "budgets": list(budgets),
            "seeds": 3,
            "recipe": {"steps": 500, "batch_size": 32, "precision": "amp"},
        },
        "model_weights": 22_713_216,
        "trials": rows[:trials],
        "candidates": candidates,
        "skipped": [{"method": "prefix", "budget": "0.1%", "reason": "a prefix has 46,080 at least"}],
        "recommendation": {
            "text": f"Train {chosen['name']}: f1 {chosen['score']:.3f} (95 % interval {chosen['low']:.3f} to "
            f"{chosen['high']:.3f}) with {chosen['trained']:,} weights; nothing smaller is as good.",
            "candidate": chosen["name"],
            "simpler": [],
        },
        "cost": {"trials": len(rows), "equivalents": 88.0, "seconds": 8123.0, "stated": {}},
    }


def front_run(folder: Path, plans: dict[str, Plan], document: dict[str, Any] | None = None) -> Path:
    """A finished front's folder."""
    folder.mkdir(parents=True)
    for name, plan in plans.items():
        plan.save(folder / "plans" / name)
    write_front(folder, document or front_document())
    return folder


def write_front(folder: Path, document: dict[str, Any]) -> None:
    (folder / "front.json").write_text(json.dumps(document))
