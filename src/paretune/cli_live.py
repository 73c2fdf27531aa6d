"""The line of progress while trials run."""

from types import TracebackType

from tqdm.auto import tqdm

from paretune.progress import is_quiet
from paretune.search.jobs import Progress


class Live:
    """One line: what the last trial was for, its score, how many there are, the time left."""

    def __init__(self) -> None:
        form = "{n_fmt}/{total_fmt} trials |{bar:20}| {desc}"
        self._bar = tqdm(total=1, bar_format=form, disable=is_quiet(), leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Take a finished trial in."""
        score = progress.scored.score
        said = "failed" if score is None else f"{score:.4f}"
        self._bar.total = progress.done + progress.ahead
        self._bar.n = progress.done
        left = f", about {progress.seconds / 60:.1f} min left" if progress.ahead else ""
        self._bar.set_description_str(f"{progress.what} {said}{left}")
