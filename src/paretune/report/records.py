"""The rows of a report: what was compared, and what was trained for it."""

from dataclasses import dataclass, field
from typing import Any

from paretune.report.reading import Fields


@dataclass(frozen=True)
class Trial:
    """One training; fields as in ``front.json``.

    Args:
        id: Its name in the run.
        candidate: The candidate it belongs to.
        method: Name of the method.
        settings: The method's settings.
        budget: As asked, or None.
        lr: Learning rate.
        share: Of the steps of a whole training.
        seed: Its seed.
        split: What it was scored on.
        failed: Why it came to nothing; empty when it did not.
        score: None when it failed.
        scores: Every metric.
        losses: ``[step, loss]`` pairs.
        seconds: Wall seconds.
        command: Reproduces it.
    """

    id: str
    candidate: str
    method: str
    settings: dict[str, Any]
    budget: str | None
    lr: float | None
    share: float | None
    seed: int
    split: str
    failed: str
    score: float | None
    scores: dict[str, Any]
    losses: list[list[float]]
    seconds: float | None
    command: str

    @classmethod
    def read(cls, row: Any, where: str) -> "Trial":
        """A trial of a file.

        Raises:
            PareError: A field of another kind.
        """
        get = Fields(row, where)
        failed = get.text("failed")
        if get.text("state", "finished") == "failed" and not failed:
            failed = "failed; the run did not say why"
        return cls(
            id=get.text("id"),
            candidate=get.text("candidate"),
            method=get.text("method"),
            settings=get.object("settings"),
            budget=get.text("budget") or None,
            lr=get.number("lr"),
            share=get.number("share"),
            seed=get.count("seed"),
            split=get.text("split"),
            failed=failed,
            score=None if failed else get.number("score"),
            scores=get.object("scores"),
            losses=[pair for pair in get.list("losses") if _is_point(pair)],
            seconds=get.number("seconds"),
            command=get.text("command"),
        )


@dataclass(frozen=True)
class Candidate:
    """What is compared: a method with its settings, at a budget and its best learning rate.

    Args:
        name: Such as ``fish 0.5%``.
        method: Name of the method.
        settings: The method's settings.
        budget: As asked, or None.
        lr: The best rate.
        share: The largest share of a whole training it was tried with.
        n: Trials there.
        score: Mean over them.
        low: Lower end of the mean's interval, or None.
        high: Upper end.
        trained: Trained weights, the head not among them.
        head: Weights of the head.
        delta_bytes: Size of the delta.
        peak_bytes: Peak memory.
        step_seconds: Seconds of a training step.
        on_front: Whether nobody beats it on score and cost.
        predicted: The score that was predicted before it was trained to the end, or None.
        plan: Folder of the plan, in the run folder.
        command: Reproduces it.
        seeds: Of its trials.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None
    lr: float | None = None
    share: float | None = None
    n: int = 0
    score: float | None = None
    low: float | None = None
    high: float | None = None
    trained: int = 0
    head: int = 0
    delta_bytes: int = 0
    peak_bytes: int = 0
    step_seconds: float | None = None
    on_front: bool = False
    predicted: float | None = None
    plan: str = ""
    command: str = ""
    seeds: tuple[int, ...] = ()

    @classmethod
    def read(cls, row: Any, where: str, trials: list[Trial]) -> "Candidate":
        """A candidate of a file.

        Raises:
            PareError: A field of another kind.
        """
        get = Fields(row, where)
        name, lr, share = get.text("name"), get.number("lr"), get.number("share")
        seeds = {t.seed for t in trials if (t.candidate, t.lr, t.share) == (name, lr, share)}
        return cls(
            name=name,
            method=get.text("method"),
            settings=get.object("settings"),
            budget=get.text("budget") or None,
            lr=lr,
            share=share,
            n=get.count("n"),
            score=get.number("score"),
            low=get.number("low"),
            high=get.number("high"),
            trained=get.count("trained"),
            head=get.count("head"),
            delta_bytes=get.count("delta_bytes"),
            peak_bytes=get.count("peak_bytes"),
            step_seconds=get.number("step_seconds"),
            on_front=get.flag("on_front"),
            predicted=get.number("predicted"),
            plan=get.text("plan"),
            command=get.text("command"),
            seeds=tuple(sorted(seeds)),
        )


def _is_point(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair)
    )
