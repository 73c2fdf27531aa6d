"""The README's picture: printed plans, as a terminal shows them.

``python -m experiments.picture PLAN [PLAN ...] --out docs/assets/plan.svg``
"""

import argparse
import re
from pathlib import Path

from rich.console import Console

from paretune.files import write_atomic
from paretune.plan import Plan


def main() -> None:
    """Print the plans and keep the picture of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="+", type=Path, help="plan folders")
    parser.add_argument("--out", type=Path, required=True, help="an .svg file")
    options = parser.parse_args()
    console = Console(record=True, width=82)
    for folder in options.plans:
        first, *lines = str(Plan.load(folder)).splitlines()
        console.print(f"{first.split()[0]} on the built-in encoder", style="bold", highlight=False)
        for line in lines:
            if not line.startswith(("settings", "training", "         ")):
                console.print(line, markup=False, highlight=False)
        console.print()
    svg = console.export_svg(title="paretune choose --method ... --budget 0.5%")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is loaded from elsewhere
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    write_atomic(options.out, svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"))


if __name__ == "__main__":
    main()
