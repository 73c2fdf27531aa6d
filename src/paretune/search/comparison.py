"""The scores of one stage, rung by rung, and the rows they make."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paretune.errors import PareError
from paretune.search.intervals import ranked, ties
from paretune.search.jobs import Scored
from paretune.search.outcome import Row, earlier_rows, last_rung_rows
from paretune.search.schedule import Cost
from paretune.search.stage_trial import StageTrial


@dataclass
class _Rung:
    share: float
    scores: dict[str, list[float | None]]
    losses: dict[str, list[float]]
    failed: str = ""


@dataclass
class Comparison:
    """What the choices of a stage scored.

    Args:
        higher: Whether a higher score is better; scores are negated where it is not.
    """

    higher: bool
    cost: Cost = field(default_factory=Cost)
    _rungs: list[_Rung] = field(default_factory=list)

    def begin(self, choices: Sequence[str], share: float) -> None:
        """A new rung, of these choices at this share of the steps."""
        self._rungs.append(
            _Rung(share, {choice: [] for choice in choices}, {choice: [] for choice in choices})
        )

    def add(self, trials: Sequence[StageTrial], results: Sequence[Scored]) -> None:
        """One draw for every choice of the rung."""
        rung = self._rungs[-1]
        for trial, scored in zip(trials, results, strict=True):
            sign = 1 if self.higher else -1
            rung.scores[trial.choice].append(None if scored.score is None else sign * scored.score)
            rung.losses[trial.choice].append(scored.loss)
            rung.failed = scored.failed or rung.failed
            self.cost += Cost(1, trial.share)

    @property
    def scores(self) -> dict[str, list[float]]:
        """The last rung's scores by choice, paired by draw, higher is better.

        A training that diverged counts as the worst score of its rung.

        Raises:
            PareError: Every one diverged.
        """
        return _whole(self._rungs[-1])

    @property
    def best(self) -> list[str]:
        """The last rung's choices, best first."""
        return ranked(self.scores, self._rungs[-1].losses)

    def rows(self) -> tuple[list[Row], list[str]]:
        """A row for each choice, at the last rung it was tried in, best first; and the winner's ties."""
        begun = [rung for rung in self._rungs if any(rung.scores.values())]
        last = begun[-1]
        scores = _whole(last)
        order = ranked(scores, last.losses)
        rows = last_rung_rows(scores, order, last.share, _diverged(last), self.higher)
        tied = ties(scores, order[0])
        for rung in reversed(begun[:-1]):
            shown = {row.choice for row in rows}
            let_go = {choice: values for choice, values in _whole(rung).items() if choice not in shown}
            rows += earlier_rows(let_go, rung.share, _diverged(rung), self.higher)
        return rows, tied


def _whole(rung: _Rung) -> dict[str, list[float]]:
    finite = [value for values in rung.scores.values() for value in values if value is not None]
    if not finite:
        raise PareError(f"every training diverged ({rung.failed}); use smaller learning rates with --lr")
    worst = min(finite)
    return {
        choice: [worst if value is None else value for value in values]
        for choice, values in rung.scores.items()
    }


def _diverged(rung: _Rung) -> dict[str, int]:
    return {choice: values.count(None) for choice, values in rung.scores.items()}
