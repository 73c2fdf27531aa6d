"""The page: one HTML file with its charts, styles and scripts inside, which loads nothing from anywhere.

Text from data files reaches it in three ways, each escaped: as HTML by jinja2, as JSON in a script block that
is no program, and inside figures by :func:`paretune.report.axes.said`. On top of that the page's policy
lets only the two scripts that are part of it run, and nothing be fetched.
"""

import base64
import hashlib
import math
import re
from functools import partial
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from paretune.plan_table import readable_bytes
from paretune.report.document import Report
from paretune.report.figures import figures
from paretune.report.records import Candidate

TITLES = {
    "front": "Score against cost",
    "tune": "One plan, trained",
    "search": "The search of a design space",
}


def render(report: Report, plotly: str) -> str:
    """The page's HTML.

    Args:
        report: What to show.
        plotly: The source of plotly.js.
    """
    script = _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": lambda count: readable_bytes(count) if count else "-",
        "count": lambda count: f"{count:,}" if count is not None else "-",
        "score": partial(_number, form=".4f"),
        "loss": partial(_number, form=".3f"),
        "short": partial(_number, form=".3g"),
        "share": partial(_number, form=".0%"),
        "seconds": _seconds,
        "cell": _cell,
        "code": _code,
        "product": math.prod,
        "settings": lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()),
    }
    drawn = figures(report)
    return environment.get_template("page.html").render(
        report=report,
        title=TITLES[report.kind],
        version=metadata.version("paretune"),
        figures=drawn,
        # Interpolated as they are: ours and plotly's, nothing from a data file.
        style=Markup(_asset("page.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        policy=_policy(plotly, script),
        points=[_point(candidate, report) for candidate in report.candidates],
        failed=[trial for trial in report.trials if trial.failed],
    )


def _asset(name: str) -> str:
    return (resources.files("paretune.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """A content security policy under which only these scripts run and nothing is loaded."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _point(candidate: Candidate, report: Report) -> dict[str, Any]:
    """What the panel says about a point: pairs of a name and a text, and the command."""
    interval = ""
    if candidate.low is not None and candidate.high is not None:
        interval = f" ({candidate.low:.4f} to {candidate.high:.4f})"
    share = f" ({candidate.trained / report.model_weights:.3%})" if report.model_weights else ""
    settings = ", ".join(f"{name}={value}" for name, value in candidate.settings.items())
    pairs = [
        (report.metric, _number(candidate.score, ".4f") + interval),
        ("method", candidate.method),
        ("settings", settings or "defaults"),
        ("trained", f"{candidate.trained:,}{share} + {candidate.head:,} of the head"),
        ("learning rate", _number(candidate.lr, "g")),
        ("seeds", f"{', '.join(map(str, candidate.seeds)) or '-'} ({candidate.n} trials)"),
        ("steps", _number(candidate.share, ".0%") + " of a whole training"),
        ("delta", readable_bytes(candidate.delta_bytes) if candidate.delta_bytes else "-"),
        ("plan", candidate.plan or "-"),
    ]
    return {"name": candidate.name, "pairs": pairs, "command": candidate.command}


def _code(sentence: str) -> Markup:
    """A sentence with what stands between backticks as code; everything else in it is text."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _cell(value: Any) -> str:
    """A cell of a table that a method wrote."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
