"""Where training reports to: transformers' integrations, asked for by name."""

from collections.abc import Sequence

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from paretune.errors import PareError, near

_PACKAGES = {"tensorboard": "tensorboardX"}  # that are called another name; the lightest that does


def check_reporting(report_to: str | Sequence[str]) -> None:
    """Refuse an integration that there is none of, or whose package is not installed.

    Args:
        report_to: ``none``, ``all`` (what is installed), or names such as ``tensorboard`` and ``trackio``.

    Raises:
        PareError: As said.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise PareError(f"report_to {name!r}: no such integration{near(name, INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise PareError(f"report_to {name!r} needs its package: pip install {_PACKAGES.get(name, name)}")
