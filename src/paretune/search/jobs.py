"""A trial to run, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Args:
        stage: Number of its stage.
        choice: The option it stands for.
        draw: Number of the random draw: the same design beside the choice, and the same seed, for all.
        share: Of the steps of a whole training.
        seed: Of the head, the data order, dropout and added modules.
        point: The options of all components.
    """

    stage: int
    choice: str
    draw: int
    share: float
    seed: int
    point: dict[str, str]

    @property
    def key(self) -> str:
        """What the trial is found by."""
        return f"{self.stage}|{self.choice}|{self.draw}|{self.share:g}"


@dataclass(frozen=True)
class Scored:
    """What came of a trial.

    Args:
        score: The task's metric on held-out train; None when training diverged.
        seconds: Wall seconds in all.
        training: Of these, the seconds of the training steps.
        failed: What the training said when it diverged.
        loss: On held-out train; the lower one decides between equal scores.
    """

    score: float | None
    seconds: float
    training: float
    failed: str = ""
    loss: float = 0.0
