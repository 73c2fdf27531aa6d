"""A task in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paretune.task.task import Task


def describe(task: "Task") -> str:
    """What a task is, a line a topic: kind, fields, labels, metric, rows, and what was cut or left out."""
    lines = [f"{task.kind} on {task.model_id}", f"text        {', '.join(task.fields.text)}"]
    if task.fields.label is not None:
        classes = f": {', '.join(task.labels)}" if task.labels else ""
        lines.append(f"label       {task.fields.label}{classes}")
    better = "higher" if task.higher_is_better else "lower"
    lines.append(f"metric      {task.metric} ({better} is better)")
    if task.labels:
        lines.append(f"f1          {f'of {task.positive!r}' if task.positive else 'mean over the classes'}")
    parts = {"train": task.train, "heldout": task.heldout, "validation": task.validation}
    rows = (f"{name} {len(part)}" for name, part in parts.items() if part is not None)
    lines.append(f"rows        {', '.join(rows)}")
    lines.append(f"max_length  {task.max_length} tokens; rows cut: {_counts(task.truncated) or 'none'}")
    if any(task.left_out.values()):
        lines.append(f"left out    {_counts(task.left_out)}: no target token")
    return "\n".join([*lines, *(f"note        {note}" for note in task.notes)])


def _counts(counts: dict[str, int]) -> str:
    """Counts as in "3 of train, 1 of validation", without the zeros."""
    return ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
