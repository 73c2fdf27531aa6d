"""The page of the AdaPEFT experiment, made from whatever rows there are."""

import statistics
from typing import Any

from experiments.runner import metric_name


def page(rows: list[dict[str, Any]], choices: dict[str, dict[str, list[float]]], middle: str) -> str:
    """Markdown: scores by budget, the predicted beside the measured front, stability.

    Args:
        rows: Runs scored on validation.
        choices: Agreement by task and what differs.
        middle: The budget of the choices.
    """
    steps = " or ".join(str(number) for number in sorted({row["steps"] for row in rows}))
    lines = [
        "# AdaPEFT: predicted and measured",
        "",
        f"Built-in encoder, {steps or 'no'} steps of 32 examples, bf16 autocast; rates swept on held-out",
        "train at each budget (seed 0), then fixed; what differs from adapeft only in how native weights are",
        "chosen takes adapeft's. Score on validation times 100, mean (lowest to highest) over the seeds. The",
        "predicted gain is of the loss, summed over what is taken; the train loss is the last one logged.",
        "`python -m experiments.adapeft` makes this page.",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += ["", f"## {task}, {metric_name(task)}", ""]
        lines += ["| method | budget | trained | seeds | lr | predicted gain | train loss | score |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        of_task = [row for row in rows if row["task"] == task]
        for place in dict.fromkeys((row["label"], row["budget"]) for row in _ordered(of_task)):
            lines.append(_line(place, [r for r in of_task if (r["label"], r["budget"]) == place]))
    for task, agreement in choices.items():
        lines += ["", f"## Does the choice hold? {task} at {middle}", ""]
        lines += ["Against the choice at the pretrained weights; the first line: between seeds.", ""]
        lines += ["| what differs | rank correlation | overlap |", "|---|---|---|"]
        lines += [f"| {what} | {rank:.2f} | {overlap:.2f} |" for what, (rank, overlap) in agreement.items()]
    return "\n".join(lines) + "\n"


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method's budgets together, ascending; methods in the order of their first run."""
    methods = list(dict.fromkeys(row["label"] for row in rows))
    return sorted(
        rows, key=lambda row: (methods.index(row["label"]), float((row["budget"] or "0").rstrip("%")))
    )


def _line(place: tuple[str, str | None], rows: list[dict[str, Any]]) -> str:
    """One row of the table of scores."""
    label, budget = place
    good = [row for row in rows if "failed" not in row]
    if not good:
        return f"| {label} | {budget or '-'} | - | {len(rows)} | - | - | - | {rows[0]['failed'][:60]} |"
    scores = [100 * row["score"] for row in good]
    gains = [
        row["notes"]["gain"] for row in good if "score" not in row["settings"] and "gain" in row["notes"]
    ]
    gain = f"{statistics.mean(gains):.3g}" if gains else "-"
    loss = statistics.mean(row["losses"][-1][1] for row in good)
    score = f"{statistics.mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
    failed = f", {len(rows) - len(good)} failed" if len(rows) > len(good) else ""
    cells = (
        f"{good[0]['trained']:,} | {len(good)}{failed} | {good[0]['lr']:g} | {gain} | {loss:.3f} | {score}"
    )
    return f"| {label} | {budget or '-'} | {cells} |"
