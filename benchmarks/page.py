"""The page of a front of 100 trials: its size, and the time from opening to drawn; the cost of the import.

``python -m benchmarks.page --quick``; its last line is JSON:

* ``page_bytes`` (at most 6 MB);
* ``draw_seconds`` (at most 2): median of fresh browsers, from navigation until what is on the screen is drawn
  (1280 x 900; what is below is drawn when it is scrolled to), by the page's own clock and with no inspector
  attached; beside it ``draw_cpu_seconds``, the CPU time of the page's process;
* ``import_overhead`` (at most 0.2): CPU time of ``import torch, transformers, paretune`` over that without
  paretune; beside it ``first_use_overhead``, with every public name looked up, which imports what paretune
  stands on (peft, datasets, scikit-learn).

It needs chromium and playwright, which ``make test`` sets up.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.machine import describe
from paretune.report import write_report
from tests.report.browser import alone
from tests.report.runs import front_run, tiny_plans

BASE = "import torch, transformers"
OURS = f"{BASE}, paretune"
FIRST_LOOK = 5.0  # seconds after the start
USED = f"{OURS}\nfor name in paretune.__all__: getattr(paretune, name)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions (about a minute)")
    repetitions = 3 if parser.parse_args().quick else 10

    with tempfile.TemporaryDirectory() as folder:
        run = front_run(Path(folder) / "front", tiny_plans(Path(folder)))
        page = write_report(run).page
        assert page is not None, "plotly is not installed"
        size = page.stat().st_size
        print(f"page of 100 trials: {size:,} bytes")
        draws = [draw(page) for _ in range(repetitions)]
    seconds, cpu = (statistics.median(column) for column in zip(*draws, strict=True))
    print(f"opened to drawn: {seconds:.2f} s, {cpu:.2f} s of CPU time")

    times: dict[str, list[float]] = {code: [] for code in (BASE, OURS, USED)}
    for _ in range(repetitions + 1):  # in turns: other work on the machine meets all alike
        for code, found in times.items():
            found.append(cpu_seconds(code))
    base, ours, used = (min(found[1:]) for found in times.values())  # the first round warms the disk
    print(f"import torch, transformers {base:.2f} s; and paretune {ours:.2f} s; every name used {used:.2f} s")
    result = {
        "page_bytes": size,
        "draw_seconds": round(seconds, 3),
        "draw_cpu_seconds": round(cpu, 3),
        "import_overhead": round(ours / base - 1, 4),
        "first_use_overhead": round(used / base - 1, 4),
        "load": round(os.getloadavg()[0], 1),
        "machine": describe(),
    }
    print(json.dumps(result))


def draw(page: Path) -> tuple[float, float]:
    """Seconds from navigation to drawn in a fresh browser, and CPU seconds of the page's process until then.

    Nothing looks on while the page draws: under an inspector V8 works out the place in the source of every
    error that plotly throws and catches, which takes half as long again as the drawing itself.
    """
    wait = FIRST_LOOK
    while True:
        with alone(page) as port:
            time.sleep(wait)
            found = _look(port)
        if found is not None:
            return found
        wait *= 2  # too early: looking has disturbed it


def _look(port: int) -> tuple[float, float] | None:
    """What an open page says of itself; None where it had not been drawn before this look."""
    with sync_playwright() as driver:
        context = driver.chromium.connect_over_cdp(f"http://127.0.0.1:{port}").contexts[0]
        session = context.new_cdp_session(context.pages[0])
        said = session.send("Runtime.evaluate", {"expression": "document.documentElement.dataset.drawn"})
        session.send("Performance.enable")
        metrics = session.send("Performance.getMetrics")["metrics"]
        cpu = next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")
    drawn = said["result"].get("value")
    return None if drawn is None else (float(drawn) / 1000, cpu)


def cpu_seconds(code: str) -> float:
    """CPU seconds of a fresh interpreter that runs this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
