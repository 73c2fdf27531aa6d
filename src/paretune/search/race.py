"""A race of candidates: successive halving with the same seeds for all, then more seeds for who is left."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from paretune.errors import PareError
from paretune.search.allowance import Allowance
from paretune.search.book import Book
from paretune.search.clock import Clock
from paretune.search.engines import Engine
from paretune.search.field import Candidate
from paretune.search.front_trial import FrontSpec
from paretune.search.jobs import Job, Scored
from paretune.search.ladder import FRONT_LADDERS, Ladder, middle_first
from paretune.search.ration import Limits
from paretune.search.schedule import Cost
from paretune.search.standing import Result, Standing, contenders, rates_of, standing

MOST_SEEDS = 20


class Watcher(Protocol):
    """Told of every trial that was finished."""

    def __call__(self, race: "Race", spec: FrontSpec, scored: Scored) -> None:
        """A trial has a result."""
        ...


@dataclass
class Race:
    """Candidates against each other.

    Args:
        candidates: What competes.
        book: The record; what is finished in it is not run again.
        engine: Who runs trials.
        limits: Trials and minutes.
        equivalents: Whole trainings that all trials together may be worth; None sets no limit.
        ladders: From generous to meagre.
        seeds: How many finalists get at least.
        seed: The first of them.
        higher: Whether a higher score is better.
        say: Called with the total before the race goes on.
        watch: Called after every trial.
    """

    candidates: Sequence[Candidate]
    book: Book
    engine: Engine
    limits: Limits
    equivalents: float | None = None
    ladders: Sequence[Ladder] = FRONT_LADDERS
    seeds: int = 3
    seed: int = 0
    higher: bool = True
    say: Callable[[object], None] = lambda message: None
    watch: Watcher = lambda race, spec, scored: None
    stated: dict[str, Any] = field(default_factory=dict, init=False)
    rung: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.limits.minutes, self.limits.workers, float(self.book.noted("seconds") or 0.0))
        self.allowance = Allowance(self.limits, self.equivalents, self.clock)
        self.results: dict[str, Result] = {}
        self.rates: dict[str, tuple[float, ...]] = {}
        for _, job, scored in self.book.trials():
            self._take(job, scored)

    @property
    def spent(self) -> Cost:
        """What the finished trials are worth."""
        return Cost(len(self.results), sum(spec.share for spec, _ in self.results.values()))

    @property
    def impossible(self) -> dict[str, str]:
        """Candidates that a trial showed to be impossible, and why.

        One that has a score is impossible only where it was trained and passed a limit: that choosing failed
        under one seed is a failed trial.
        """
        scoring = {spec.candidate for spec, scored in self.results.values() if scored.score is not None}
        return {
            spec.candidate: scored.failed
            for spec, scored in self.results.values()
            if scored.details.get("impossible")
            and (spec.candidate not in scoring or "plan" in scored.details)
        }

    @property
    def standings(self) -> list[Standing]:
        """How the candidates stand that have a score: those trained the longest first, of these the best."""
        found = [self._standing(each, self.results.values()) for each in self.candidates]
        return sorted(
            (each for each in found if each), key=lambda each: (each.share, each.worth), reverse=True
        )

    def run(self) -> None:
        """Race, as far as trials and minutes go.

        Raises:
            PareError: Too few trials or minutes for one look at every candidate, or no trial came to a score.
        """
        ladder = self._ladder()
        self._first(ladder)
        alive = self._alive(self.candidates)
        if not alive:
            reasons = [scored.failed for _, scored in self.results.values() if scored.failed]
            raise PareError(
                f"no trial came to a score; the last one: {reasons[-1] if reasons else 'none ran'}"
            )
        if ladder.second:
            references = sum(each.is_reference for each in self.candidates)
            alive = self._best(alive, ladder.first, ladder.survivors(len(self.candidates), references))
            self._second(alive, ladder)
        share = ladder.second or ladder.first
        finalists = self._best(alive, share, ladder.finalists + sum(each.is_reference for each in alive))
        self._finals(finalists, ladder)

    def _ladder(self) -> Ladder:
        """What fits the limits, stated before it starts; a first trial is timed for that."""
        noted, rates = self.book.noted("ladder"), self.book.noted("rates") or {}
        # A race that began with other rates, under another version, goes on with those.
        self.rates = {each.name: tuple(rates.get(each.name, each.rates)) for each in self.candidates}
        counts = [len(self.rates[each.name]) for each in self.candidates]
        references = sum(each.is_reference for each in self.candidates)
        if noted is None:
            # Too few trials are told before one is run; minutes are compared after a first one.
            self._time_first_trial(self._affordable(counts, references).first)
        ladder = Ladder(**noted) if noted else self._affordable(counts, references)
        if noted is None:
            self.book.note("ladder", ladder.document())
            self.book.note("seeds", self.seeds)
            self.book.note("rates", self.rates)
        elif self.seeds > int(self.book.noted("seeds") or self.seeds):
            more = replace(ladder, seeds=max(ladder.seeds, self.seeds))
            if self.allowance.holds(_beyond(more.cost(counts, references), self.spent), self.spent):
                ladder = more
        least = ladder.cost(counts, references)
        self.clock.ahead = _beyond(least, self.spent)
        self.stated = {"trials": least.trials, "equivalents": least.equivalents}
        text = f"{least.trials} trials of {len(counts)} candidates"
        text += f", worth {least.equivalents:.1f} whole trainings"
        if self.clock.speed is not None:
            minutes = self.clock.speed.seconds(least, self.limits.workers) / 60
            self.stated["minutes"] = minutes
            text += f": about {minutes:.1f} minutes, {self.limits.workers} at a time"
        self.stated["most"] = self.allowance.said
        self.say(f"{text}; then more seeds for who is not told apart, at most {self.allowance.said} in all")
        return ladder

    def _affordable(self, counts: Sequence[int], references: int) -> Ladder:
        return self.allowance.ladder(self.ladders, counts, references, self.seeds)

    def _time_first_trial(self, share: float) -> None:
        """Run the first trial, which is one of the race's own, until one says how long a trial takes.

        References come last: the head alone is the cheapest of all and would promise too much.
        """
        for candidate in sorted(self.candidates, key=lambda each: each.is_reference):
            if self.clock.speed is not None:
                return
            rate = middle_first(self.rates[candidate.name], 1)[0]
            spec = self._spec(candidate, rate, share, self.seed)
            self._run("first look", [spec])

    def _first(self, ladder: Ladder) -> None:
        """Every rate of every candidate, the middle ones first; that settles each one's rate."""
        specs = []
        for place in range(ladder.rates):
            for candidate in self.candidates:
                rates = middle_first(self.rates[candidate.name], ladder.rates)
                if place < len(rates):
                    specs.append(self._spec(candidate, rates[place], ladder.first, self.seed))
        self._run("learning rates", specs)

    def _second(self, alive: Sequence[Candidate], ladder: Ladder) -> None:
        specs = []
        for place in range(ladder.carried):
            for candidate in alive:
                tried = self.rates[candidate.name]
                rates = rates_of(candidate, self.results.values(), ladder.first, self.higher, tried)
                if place < len(rates):
                    specs.append(self._spec(candidate, rates[place], ladder.second, self.seed))
        self._run("better half", specs)

    def _finals(self, finalists: Sequence[Candidate], ladder: Ladder) -> None:
        """Seed after seed: all finalists at first, then those that the best is not told apart from."""
        # The rate is settled now: of the largest share that each was tried with before this rung.
        before = [result for result in self.results.values() if result[0].share < ladder.last]
        ended = {each.name: self._standing(each, before) for each in finalists}
        rates = {name: each.lr for name, each in ended.items() if each}
        while len(finalists) > 1 and self.clock.out_of_time(Cost(1, ladder.last) * len(finalists)):
            finalists = finalists[:-1]  # references come last; the best are first
        for number in range(MOST_SEEDS):
            running = [each for each in finalists if each.name in rates]
            if number >= ladder.seeds:
                running = self._undecided(running, ladder.last)
                if len(running) < 2:
                    return
            specs = [self._spec(each, rates[each.name], ladder.last, self.seed + number) for each in running]
            missing = [spec for spec in specs if spec.job.key not in self.results]
            cost = Cost(len(missing), sum(spec.share for spec in missing))
            if missing and number >= ladder.seeds and not self.allowance.holds(cost, self.spent):
                return
            self._run(f"seed {number + 1}", specs)

    def _undecided(self, running: Sequence[Candidate], share: float) -> list[Candidate]:
        """The best and those that it is not told apart from, references left out."""
        found = [self._standing(each, self.results.values()) for each in running]
        field = [each for each in found if each and each.share == share and not each.candidate.is_reference]
        if not field:
            return []
        best = max(field, key=lambda each: each.worth)
        others = contenders(best, [each for each in field if each is not best])
        return [best.candidate, *(each.candidate for each in others)]

    def _alive(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that have a score and are not impossible."""
        found = {each.candidate.name for each in self.standings}
        return [each for each in candidates if each.name in found and each.name not in self.impossible]

    def _best(self, candidates: Sequence[Candidate], share: float, count: int) -> list[Candidate]:
        """The best so many at a share, taken in turn from each budget; references are always among them."""
        results = [result for result in self.results.values() if result[0].share == share]
        alive = self._alive(candidates)
        scored = {each.name: self._standing(each, results) for each in alive}
        known = {name: each for name, each in scored.items() if each}
        ranked = sorted(
            (each for each in alive if each.name in known),
            key=lambda each: known[each.name].worth,
            reverse=True,
        )
        references = [each for each in ranked if each.is_reference]
        groups: dict[str | None, list[Candidate]] = {}
        for each in ranked:
            if not each.is_reference:
                groups.setdefault(each.group, []).append(each)
        turns = [each for turn in _turns(list(groups.values())) for each in turn]
        return [*turns[: max(count - len(references), 1)], *references]

    def _standing(self, candidate: Candidate, results: Iterable[Result]) -> Standing | None:
        return standing(candidate, results, self.higher, self.rates.get(candidate.name, ()))

    def _spec(self, candidate: Candidate, lr: float, share: float, seed: int) -> FrontSpec:
        return FrontSpec(
            candidate.name, candidate.method, candidate.settings, candidate.budget, lr, share, seed
        )

    def _run(self, rung: str, specs: Sequence[FrontSpec]) -> None:
        """Run what is not finished yet, as long as it is within the limits."""
        self.rung = rung
        try:
            self.engine.run(self._jobs(specs), self)
        finally:
            self.book.note("seconds", self.clock.seconds)

    def _jobs(self, specs: Sequence[FrontSpec]) -> Iterator[Job]:
        """Jobs one at a time: what became impossible or unaffordable meanwhile is left out."""
        begun = len(self.results)
        for spec in specs:
            if spec.job.key in self.results or spec.candidate in self.impossible:
                continue
            if self.clock.out_of_time(Cost(1, spec.share)) or begun == self.limits.trials:
                return
            begun += 1
            yield spec.job

    def begin(self, job: Job) -> int:
        """A trial runs now; its number."""
        point = {"candidate": job.spec["candidate"], "lr": f"{job.spec['lr']:g}"}
        options = {
            "candidate": tuple(each.name for each in self.candidates),
            "lr": tuple(sorted({f"{rate:g}" for rates in self.rates.values() for rate in rates}, key=float)),
        }
        return self.book.begin(job, point, options)

    def finish(self, trial: int, job: Job, scored: Scored) -> None:
        """A trial has a result."""
        self.book.finish(trial, scored)
        spec = self._take(job, scored)
        self.watch(self, spec, scored)

    def give_up(self, trial: int, reason: str) -> None:
        """A trial came to nothing; it is begun again."""
        self.book.give_up(trial, reason)

    def refuse(self, trial: int, job: Job, reason: str) -> None:
        """A trial cannot be done: that is its result, and the others go on."""
        self.finish(trial, job, Scored(None, 0.0, 0.0, reason))

    def _take(self, job: Job, scored: Scored) -> FrontSpec:
        spec = FrontSpec(**job.spec)
        self.results[job.key] = (spec, scored)
        self.clock.took(job)
        if scored.training:  # what failed before it trained says nothing of how long trials take
            self.clock.learn(job, scored)
        return spec


def _beyond(cost: Cost, spent: Cost) -> Cost:
    """What of a cost is not spent yet."""
    return Cost(max(cost.trials - spent.trials, 0), max(cost.equivalents - spent.equivalents, 0.0))


def _turns(groups: Sequence[Sequence[Candidate]]) -> Iterator[list[Candidate]]:
    """The best of every group, then the second of every group, and so on."""
    for place in range(max(map(len, groups), default=0)):
        yield [group[place] for group in groups if place < len(group)]
