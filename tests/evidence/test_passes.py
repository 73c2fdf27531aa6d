"""A pass over several processes ends with the same in each, and with what one process ends with."""

import socket
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.evidence.one_rank import main
from tests.processes import ended, start
from tests.tiny import tiny_model


def run(ranks: int, model: Path, out: Path) -> None:
    """Start the processes as a launcher does, over the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        said = out / f"said-{rank}"
        processes.append(start(said, main, str(model), str(out), environment=shared | own))
    assert [ended(process) for process in processes] == [0] * ranks


def test_two_processes_equal_one_and_fail_together(tmp_path: Path) -> None:
    model = tiny_model("bert", tmp_path / "bert")
    run(2, model, tmp_path)
    main(str(model), str(tmp_path))
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert one.keys() == first.keys() == second.keys()
    for name, values in one.items():
        assert first[name].equal(second[name]), name
        if name.startswith("chosen:"):
            assert first[name].equal(values), name
        else:
            scale = float(values.abs().max())
            torch.testing.assert_close(first[name], values, rtol=1e-5, atol=1e-6 * max(scale, 1e-6))
    texts = {(tmp_path / f"{name}.txt").read_text() for name in ("1-0", "2-0", "2-1")}
    assert len(texts) == 1 and "has the loss nan" in texts.pop()
