"""``paretune choose`` ended in the middle of its scoring pass: nothing half is left, and it starts anew."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.cli import INTERRUPTED, OK, main
from paretune.errors import PareError
from paretune.plan import Plan
from tests.tiny import tiny_model, tiny_rows, write_jsonl

# The command as it is; each batch that was scored is told.
RUN = """
import sys
from paretune.cli import main
from paretune.evidence.collector import Collector
run = Collector.run
def told(self, *arguments):
    print("scored", flush=True)
    return run(self, *arguments)
Collector.run = told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_half_is_left(tmp_path, how):
    tiny_model("bert", tmp_path / "bert")
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("single", 150))
    options = [
        "choose",
        "--model",
        str(tmp_path / "bert"),
        "--train",
        str(tmp_path / "train.jsonl"),
        "--quiet",
    ]
    options += ["--budget", "3%", "--method", "fish", "--set", "batch_size=1", "--out"]
    command = [sys.executable, "-c", RUN, *options, str(tmp_path / "plan")]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        **pipes,
    ) as process:
        for _ in range(5):  # of 135
            assert process.stdout.readline() == "scored\n"
        process.send_signal(how)
        printed, said = process.communicate()
    assert set(printed.split()) <= {"scored"}  # no plan is shown
    if how == signal.SIGINT:
        assert process.returncode == INTERRUPTED
        assert "interrupted; the same command starts anew" in said
        assert "Traceback" not in said
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "plan").exists()
    with pytest.raises(PareError, match="no plan there"):
        Plan.load(tmp_path / "plan")
    assert main([*options, str(tmp_path / "plan")]) == OK
    assert main([*options, str(tmp_path / "whole")]) == OK
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "plan" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
