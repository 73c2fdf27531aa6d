import ast
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import paretune.delta
from paretune.anatomy import base_digest
from paretune.delta import Delta, Values, format
from paretune.errors import PareError
from paretune.plan import Base
from paretune.task.models import load_model_from_spec
from tests.delta.examples import Net, file_delta, net_delta, same_bits, snapshot
from tests.tiny import tiny_model


def test_save_and_load(tmp_path):
    delta = file_delta()
    path = tmp_path / "new" / "d.safetensors"
    delta.save(path)
    assert path.read_bytes() == format.encode(delta)
    again = Delta.load(path)
    assert isinstance(again, Delta) and again.digest == delta.digest
    assert [p.name for p in path.parent.iterdir()] == ["d.safetensors"]
    delta.to(torch.bfloat16).save(path)
    assert Delta.load(path).digest == delta.to(torch.bfloat16).digest


def test_a_file_on_a_model(tmp_path):
    model = Net()
    before = snapshot(model)
    delta = net_delta(model, 0)
    delta.save(tmp_path / "d.safetensors")
    with delta.apply(model):
        wanted = snapshot(model)
    with Delta.load(tmp_path / "d.safetensors").apply(model):
        assert same_bits(snapshot(model), wanted)
    assert same_bits(snapshot(model), before)


def test_verify(tmp_path):
    path = tmp_path / "d.safetensors"
    model = Net()
    before = snapshot(model)
    net_delta(model, 0).save(path)
    assert Delta.verify(path).count == Delta.verify(path, model).count > 0
    assert same_bits(snapshot(model), before)
    with pytest.raises(PareError, match="other weights"):
        Delta.verify(path, Net(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PareError, match=r"d\.safetensors: damaged"):
        Delta.verify(path)


def test_its_representation_is_one_line():
    assert repr(file_delta()) == "<Delta for some/model: 67 weights>"


def test_with_info_adds():
    delta = file_delta().with_info(scores={"f1": 1.0}, lr=0.1)
    assert delta.info == {"method": "fish", "seed": 3, "scores": {"f1": 1.0}, "lr": 0.1}
    with pytest.raises(PareError, match="info"):
        delta.with_info(x=object())


def test_diverged_values_are_not_saved_and_the_old_file_stays(tmp_path):
    path = tmp_path / "d.safetensors"
    file_delta().save(path)
    old = path.read_bytes()
    values = Values((2,), "all", None, torch.tensor([0.0, float("inf")]))
    broken = Delta(Base("m", "d", "float32"), "p", tensors={"layer.weight": values})
    with pytest.raises(PareError, match=r"layer\.weight: 1 of 2 values are NaN or infinite"):
        broken.save(path)
    assert path.read_bytes() == old


@pytest.mark.parametrize("call", ["fsync", "write", "replace", "mkstemp"])
def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "d.safetensors"
    file_delta().save(path)
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        def __init__(self, handle, mode):
            self.handle = handle

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.handle)

        write = full

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "fdopen", FullFile)
        elif call == "mkstemp":
            patch.setattr("tempfile.mkstemp", full)
        else:
            patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            file_delta().to(torch.float64).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_a_full_disk_for_real_keeps_the_old_file(tmp_path):
    """The kernel refuses to let any file grow beyond a limit."""
    path = tmp_path / "d.safetensors"
    file_delta().save(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError):
            file_delta().to(torch.float64).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def _save_forever(path: Path, deltas: list[Delta]) -> None:
    while True:
        for delta in deltas:
            delta.save(path)


def test_a_kill_during_a_save_leaves_a_whole_file(tmp_path):
    path = tmp_path / "d.safetensors"
    deltas = [file_delta(), file_delta().to(torch.float64)]
    deltas[0].save(path)
    contents = {format.encode(delta) for delta in deltas}
    rng = np.random.default_rng(0)
    for _ in range(15):
        # Forked, so that no time goes into imports; the child touches nothing but files.
        child = multiprocessing.get_context("fork").Process(target=_save_forever, args=(path, deltas))
        child.start()
        time.sleep(float(rng.uniform(0.005, 0.05)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert path.read_bytes() in contents
        Delta.load(path)


def test_no_pickle_on_any_path(tmp_path, monkeypatch):
    model = Net()
    one, two = net_delta(model, 0), net_delta(model, 1)

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    one.save(tmp_path / "d.safetensors")
    applied = Delta.verify(tmp_path / "d.safetensors", model).apply(model)
    Delta.merge([one, two], "mean").inspect()
    applied.revert()
    str(two.to(torch.bfloat16))
    for path in Path(paretune.delta.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(m.split(".")[0] in ("pickle", "joblib", "dill", "marshal") for m in modules), path


SPEC = {"kind": "classification", "labels": ["no", "yes"], "pad_token_id": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_model("bert", tmp_path_factory.mktemp("bert"))


def task_delta(folder: Path, dtype: torch.dtype = torch.float32, spec=SPEC) -> Delta:
    model = load_model_from_spec(folder, spec, dtype=dtype)
    head = model.paretune_head
    tensors = {
        name: Values(tuple(p.shape), "all", None, torch.randn(p.shape).to(dtype))
        for name, p in model.named_parameters()
        if name in head
    }
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    shape = tuple(model.get_parameter(name).shape)
    tensors[name] = Values(shape, "rows", np.array([3]), torch.randn(shape[1]).to(dtype))
    base = Base(str(folder), base_digest(model, head), str(dtype).removeprefix("torch."))
    return Delta(base, "p", head=head, task=dict(spec), tensors=tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_model_rebuilds_base_and_head(tiny, dtype):
    delta = task_delta(tiny, dtype)
    fresh = load_model_from_spec(tiny, SPEC, seed=7, dtype=dtype)
    delta.apply(fresh)
    model = delta.load_model()
    assert same_bits(snapshot(model), snapshot(fresh))
    assert next(delta.load_model(dtype=torch.float64).parameters()).dtype == torch.float64
    assert same_bits(snapshot(delta.load_model(merge=True)), snapshot(fresh))


def test_load_model_from_another_place(tiny, tmp_path):
    delta = task_delta(tiny)
    copied = tmp_path / "elsewhere"
    tiny_model("bert", copied)
    assert same_bits(snapshot(delta.load_model(copied)), snapshot(delta.load_model()))
    other = tiny_model("bert", tmp_path / "other", seed=1)
    with pytest.raises(PareError, match=r"other, has other weights"):
        delta.load_model(other)


def test_load_model_wants_a_task_and_a_dtype(tiny):
    delta = task_delta(tiny)
    delta.task = {}
    with pytest.raises(PareError, match="does not know its task"):
        delta.load_model()
    delta = task_delta(tiny)
    delta.base = Base(delta.base.model, delta.base.digest, "load")
    with pytest.raises(PareError, match="'load', which no model"):
        delta.load_model()
