import fcntl
import signal
import subprocess
import sys

import pytest

from paretune.errors import PareError
from paretune.search.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from paretune.search.lock import Lock
held = Lock(Path(sys.argv[1]), "training")
print("held", flush=True)
time.sleep(60)
"""


def test_one_holds_it_at_a_time_and_nothing_is_left(tmp_path):
    path = tmp_path / "runs/run/tune.lock"
    with Lock(path, "training"):
        with pytest.raises(PareError, match=r"runs/run: another process is training here; wait for it, or"):
            Lock(path, "training")
        assert path.exists()
    assert not (tmp_path / "runs").exists()
    lock = Lock(path, "training")
    (path.parent / "request.json").write_text("{}")
    lock.close()
    lock.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["request.json"]


def test_a_folder_that_was_there_stays(tmp_path):
    Lock(tmp_path / "tune.lock", "training").close()
    assert not list(tmp_path.iterdir())


def test_a_kill_frees_it(tmp_path):
    path = tmp_path / "run/tune.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PareError, match="another process"):
            Lock(path, "training")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert path.exists()
    Lock(path, "training").close()
    assert not path.exists()


def test_a_file_that_its_holder_removed_meanwhile_is_not_it(tmp_path, monkeypatch):
    path = tmp_path / "tune.lock"
    held = Lock(path, "training")
    flock = fcntl.flock

    def late(handle, how):
        held.close()  # between the opening and the locking
        return flock(handle, how)

    monkeypatch.setattr("fcntl.flock", late)
    with Lock(path, "training"), pytest.raises(PareError, match="another process"):
        Lock(path, "training")


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(PareError, match=r"nothing can be locked on this file system .* give an --out on"):
        Lock(tmp_path / "run/tune.lock", "training")
    assert not (tmp_path / "run").exists()
