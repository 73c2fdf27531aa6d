"""The README's pictures: printed plans, as a terminal shows them, and the top of a run's page.

``python -m experiments.picture PLAN [PLAN ...] --out docs/assets/plan.svg``
``python -m experiments.picture RUN/report.html --out docs/assets/front.png``, after ``make browser`` and
``paretune front --methods head lora random fish full --budgets 0.5% --epochs 2`` on the demo's task with
500 training and 150 validation texts of each label (``write_data(folder, 500, 150)``)
"""

import argparse
import re
from pathlib import Path
from shutil import which

from rich.console import Console

from paretune.files import write_atomic
from paretune.plan import Plan

WIDTH, HEIGHT = 1100, 860  # of a page, in CSS pixels
DRAWN = 3_000  # milliseconds until the figures stand


def main() -> None:
    """Print the plans, or open the page, and keep the picture of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="+", type=Path, help="plan folders, or one page")
    parser.add_argument("--out", type=Path, required=True, help=".svg of plans, .png of a page")
    options = parser.parse_args()
    if options.out.suffix == ".png":
        photograph(options.what[0], options.out)
    else:
        write_atomic(options.out, printed(options.what))


def printed(folders: list[Path]) -> str:
    """Plans as SVG."""
    console = Console(record=True, width=82)
    for folder in folders:
        plan = Plan.load(folder)
        reading = plan.settings.get("reading")
        name = f"{plan.method}, {reading}" if reading else plan.method
        console.print(f"{name}, on the built-in encoder", style="bold", highlight=False)
        for line in str(plan).splitlines()[1:]:
            if not line.startswith(("settings", "training", "         ")):
                console.print(line, markup=False, highlight=False)
        console.print()
    svg = console.export_svg(title="paretune choose --method ... --budget 0.5%")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is loaded from elsewhere
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas")


def photograph(page: Path, out: Path) -> None:
    """What a reader sees first of a page, in the light theme."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        view = context.new_page()
        view.goto(page.resolve().as_uri())
        view.wait_for_timeout(DRAWN)
        view.screenshot(path=str(out))
        browser.close()


if __name__ == "__main__":
    main()
