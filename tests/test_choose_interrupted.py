"""``paretune choose`` ended in the middle of its scoring pass: nothing half is left, and it starts anew."""

import os
import signal
import sys
import time
from itertools import count

import pytest

from paretune.cli import INTERRUPTED, OK, main
from paretune.errors import PareError
from paretune.evidence.collector import Collector
from paretune.plan import Plan
from tests.processes import ended, start
from tests.tiny import tiny_model, tiny_rows, write_jsonl


def command(words):
    """The command as it is, but that each batch is told and the fifth lasts until a signal comes."""
    run, batches = Collector.run, count(1)

    def told(self, *arguments):
        print("scored", flush=True)
        if next(batches) == 5:
            time.sleep(300)
        return run(self, *arguments)

    Collector.run = told
    sys.exit(main(words))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_half_is_left(tmp_path, how):
    tiny_model("bert", tmp_path / "bert")
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("single", 60))
    options = [
        "choose",
        "--model",
        str(tmp_path / "bert"),
        "--train",
        str(tmp_path / "train.jsonl"),
        "--quiet",
    ]
    options += ["--budget", "3%", "--method", "fish", "--set", "batch_size=1", "--out"]
    process = start(tmp_path / "said", command, [*options, str(tmp_path / "plan")])
    until = time.monotonic() + 120
    while not (printed := tmp_path / "said/stdout").exists() or printed.read_text().count("scored") < 5:
        assert time.monotonic() < until and process.exitcode is None
        time.sleep(0.01)
    os.kill(process.pid, how)
    code = ended(process)
    printed, said = ((tmp_path / "said" / name).read_text() for name in ("stdout", "stderr"))
    assert printed.split() == ["scored"] * 5  # no plan is shown
    if how == signal.SIGINT:
        assert code == INTERRUPTED
        assert "interrupted; the same command starts anew" in said
        assert "Traceback" not in said
    else:
        assert code == -signal.SIGKILL
    assert not (tmp_path / "plan").exists()
    with pytest.raises(PareError, match="no plan there"):
        Plan.load(tmp_path / "plan")
    assert main([*options, str(tmp_path / "plan")]) == OK
    assert main([*options, str(tmp_path / "whole")]) == OK
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "plan" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
