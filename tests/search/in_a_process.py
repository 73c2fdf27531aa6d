"""A search in a process of its own, for the tests that kill it.

It imports inside `main`: worker processes import this file again.
"""

import sys
from pathlib import Path


def main():
    from paretune.search.ration import Limits
    from tests.search.counted import Counted
    from tests.search.designs_help import run

    folder, seconds, workers = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    run(folder, Counted(folder / "log", seconds=seconds), limits=Limits(workers=workers))


if __name__ == "__main__":
    main()
