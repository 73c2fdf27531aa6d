"""A pass over several processes ends with the same in each, and with what one process ends with."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.evidence.one_rank import main
from tests.processes import launch
from tests.tiny import tiny_model


def test_two_processes_equal_one_and_fail_together(tmp_path: Path) -> None:
    model = tiny_model("bert", tmp_path / "bert")
    launch(2, tmp_path, main, str(model), str(tmp_path))
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
