"""A trial of a staged search: which option of which stage it stands for, and the design it trains."""

from dataclasses import asdict, dataclass

from paretune.search.jobs import Job


@dataclass(frozen=True)
class StageTrial:
    """One trial of a stage.

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
    def job(self) -> Job:
        """What an engine runs."""
        key = f"{self.stage}|{self.choice}|{self.draw}|{self.share:g}"
        return Job(key, asdict(self), self.share)

    @classmethod
    def of(cls, job: Job) -> "StageTrial":
        """The trial of a job."""
        return cls(**job.spec)
