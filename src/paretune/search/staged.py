"""The staged refinement of a design space (arXiv 2301.01821): one component settled after the other.

Every stage compares the options of one component by the mean score of random designs that have it, with
all that is settled already. A draw is the same random rest and the same seed for every option.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paretune.errors import PareError
from paretune.search.book import Book
from paretune.search.comparison import Comparison
from paretune.search.draws import Draws
from paretune.search.engines import Engine
from paretune.search.intervals import separated
from paretune.search.jobs import Job, Progress, Scored
from paretune.search.outcome import Outcome
from paretune.search.ration import Limits, Ration
from paretune.search.schedule import Cost, rungs
from paretune.search.space import ALLOCATION, GROUPING, RATE, TUNED, Point, Space
from paretune.search.stage_trial import StageTrial

_NUMBERS = {RATE: "S0", GROUPING: "S1", ALLOCATION: "S2", TUNED: "S3"}


@dataclass
class Staged:
    """A staged search over one space.

    Args:
        space: What is chosen from.
        book: The record; what is finished in it is not run again.
        engine: Who runs trials.
        refusal: Why a point cannot be made within the budget; None when it can.
        limits: Trials and minutes.
        higher: Whether a higher score is better.
        seed: Of everything drawn.
        say: Called with the total before the search goes on, and with every stage's outcome.
        show: Called after every trial.
    """

    space: Space
    book: Book
    engine: Engine
    refusal: Callable[[Point], str | None]
    limits: Limits = field(default_factory=Limits)
    higher: bool = True
    seed: int = 0
    say: Callable[[object], None] = lambda message: None
    show: Callable[[Progress], None] = lambda progress: None

    def __post_init__(self) -> None:
        self._ration = Ration(self.limits, float(self.book.noted("seconds") or 0.0))
        self._draws = Draws(self.space, self.refusal, self.seed)
        self._finished: dict[str, Scored] = {}
        for key, job, scored in self.book.trials():
            self._finished[key] = scored
            self._ration.learn(job, scored)
        self._stage = ""

    @property
    def seconds(self) -> float:
        """Wall seconds so far, those of interrupted runs included."""
        return self._ration.seconds

    def run(self) -> list[Outcome]:
        """Settle every component.

        Returns:
            The outcomes of the stages, in order.

        Raises:
            PareError: Too few trials or minutes for one look at every choice, no design fits the budget,
                every training of a rung diverged, or a trial cannot run.
        """
        self._state_total()
        outcomes: list[Outcome] = []
        for number, component in enumerate(self.space.components):
            kept = self.book.noted(f"stage {number}")
            outcome = Outcome.from_document(kept) if kept else self._settle(number, component, outcomes)
            if not kept:
                self.book.note(f"stage {number}", outcome.document())
            outcomes.append(outcome)
            self.say(outcome)
        return outcomes

    def _state_total(self) -> None:
        """Say what the search takes at most: trials at once, minutes after a first trial was timed."""
        choices = [len(options) for options in self.space.components.values()]
        self._ration.total(choices)  # too few trials are told before one is run
        if self._ration.speed is None:
            self._time_first_trial()
        total, speed = self._ration.total(choices), self._ration.speed
        if total.trials and speed is not None:
            minutes = speed.seconds(total, self.limits.workers) / 60
            self.say(
                f"at most {total.trials} trials, worth {total.equivalents:.0f} whole trainings: about "
                f"{minutes:.1f} minutes, {self.limits.workers} at a time"
            )

    def _time_first_trial(self) -> None:
        """Run the first trial of the first stage that has a choice; it is one of the search's own."""
        settled: Point = {}
        for number, component in enumerate(self.space.components):
            options, _ = self._draws.options(number, component, settled)
            if len(options) > 1:
                draw = next(self._draws.rests(number, component, settled, options))
                point = {**draw.rest, component: options[0]}
                share = rungs(len(options))[0].share
                self._stage = _name(component)
                self._results([StageTrial(number, options[0], draw.number, share, draw.seed, point)])
                return
            settled[component] = options[0]

    def _settle(self, number: int, component: str, before: Sequence[Outcome]) -> Outcome:
        """Run one stage."""
        name = self._stage = _name(component)
        settled = {outcome.component: outcome.winner for outcome in before}
        if not _is_open(component, settled):
            option = self.space.components[component][0]
            return Outcome(name, component, option, "not tuned")
        options, dropped = self._draws.options(number, component, settled)
        later = [each for each in list(self.space.components)[number + 1 :] if _is_open(each, settled)]
        choices = [len(options), *(len(self.space.components[each]) for each in later)]
        rounds = self._ration.rounds(choices, sum(outcome.trials for outcome in before))
        if len(options) == 1:
            return Outcome(name, component, options[0], "only choice", dropped=dropped)
        if not rounds:
            return Outcome(name, component, self._of_best(component, options), "not tried", dropped=dropped)
        compared = Comparison(self.higher)
        ends = self._climb(number, component, settled, options, rounds, compared)
        rows, tied = compared.rows()
        return Outcome(
            name=name,
            component=component,
            winner=rows[0].choice,
            ends=ends,
            ties=tuple(tied),
            rows=tuple(rows),
            trials=compared.cost.trials,
            equivalents=compared.cost.equivalents,
            dropped=dropped,
        )

    def _climb(
        self,
        number: int,
        component: str,
        settled: Point,
        options: Sequence[str],
        rounds: int,
        compared: Comparison,
    ) -> str:
        """Go through the rungs of a stage, each with fresh draws; why it ended."""
        draws = self._draws.rests(number, component, settled, options)
        alive = list(options)
        for rung in rungs(len(options)):
            alive = alive[: rung.choices]
            compared.begin(alive, rung.share)
            for _ in range(rounds):
                if compared.cost.trials and self._ration.out_of_time(Cost(1, rung.share) * len(alive)):
                    return "out of time"
                draw = next(draws)
                trials = [
                    StageTrial(
                        number, option, draw.number, rung.share, draw.seed, {**draw.rest, component: option}
                    )
                    for option in alive
                ]
                compared.add(trials, self._results(trials))
                if separated(compared.scores):
                    return "separated"
            alive = compared.best
        return "spent"

    def _results(self, trials: Sequence[StageTrial]) -> list[Scored]:
        """The results of a round; what is in the book already is not run again."""
        jobs = [trial.job for trial in trials]
        missing = []
        for job in jobs:
            if job.key in self._finished:
                self._ration.took(job)
            else:
                missing.append(job)
        if missing:
            try:
                self.engine.run(missing, self)
            finally:
                self.book.note("seconds", self.seconds)
        return [self._finished[job.key] for job in jobs]

    def _of_best(self, component: str, options: Sequence[str]) -> str:
        """What the best trial so far has, of those with the most steps."""
        sign = 1 if self.higher else -1
        scored = [
            (job.share, sign * found.score, job.spec["point"][component])
            for _, job, found in self.book.trials()
            if found.score is not None and job.spec["point"][component] in options
        ]
        return max(scored)[2] if scored else options[0]

    def begin(self, job: Job) -> int:
        """A trial runs now; its number."""
        return self.book.begin(job, job.spec["point"], self.space.components)

    def finish(self, trial: int, job: Job, scored: Scored) -> None:
        """A trial has a result."""
        self.book.finish(trial, scored)
        self._finished[job.key] = scored
        self._ration.learn(job, scored)
        self._ration.took(job)
        left = self._ration.left() or 0.0
        ahead = self._ration.ahead.trials
        what = f"{self._stage}: {StageTrial.of(job).choice}"
        self.show(Progress(what, scored, len(self._finished), ahead, left))

    def give_up(self, trial: int, reason: str) -> None:
        """A trial came to nothing."""
        self.book.give_up(trial, reason)

    def refuse(self, trial: int, job: Job, reason: str) -> None:
        """A trial cannot be done, and without it its stage is not fair.

        Raises:
            PareError: Always.
        """
        self.book.give_up(trial, reason)
        raise PareError(reason)


def _name(component: str) -> str:
    return f"{_NUMBERS.get(component, 'S4')} {component}"


def _is_open(component: str, settled: Mapping[str, str]) -> bool:
    """Whether a component is still a choice: the strategies of a group that is not tuned are none."""
    tuned = settled.get(TUNED)
    if tuned is None or component in _NUMBERS:
        return True
    return component.rpartition(" ")[2] in tuned.split("+")
