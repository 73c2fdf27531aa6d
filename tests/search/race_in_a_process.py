"""A race in a process of its own, for the tests that kill it; worker processes import this file again."""

import sys
from pathlib import Path


def main():
    from paretune.search.ration import Limits
    from tests.search.planted import Planted
    from tests.search.race_help import race

    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    race(folder, Planted(folder / "log", noise=0.01, seconds=0.1), limits=Limits(workers=workers))


if __name__ == "__main__":
    main()
