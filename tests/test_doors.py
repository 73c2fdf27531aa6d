"""The tunable model in the tools people have already: each takes it as it is."""

import copy
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import paretune as pt
from paretune.anatomy import base_digest
from tests.tiny import tiny_model, tiny_rows, write_jsonl

# The command line in a process that no connection leaves.
OFFLINE = """
import os, socket, sys
def watch(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and arguments[0].family != socket.AF_UNIX):
        print(event, arguments, file=sys.stderr, flush=True)
        os._exit(9)
sys.addaudithook(watch)
from paretune.cli import main
sys.exit(main())
"""
METHODS = (("random", "3%"), ("lora", "5%"), ("bitfit", None))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    train = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    validation = write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 30, seed=1))
    return pt.Task.from_files(train, validation, model=tiny_model("bert", folder / "bert"))


def tunable(task, method, budget):
    model = task.load_model()
    return pt.attach(model, pt.choose(method, model, task, budget))


def check(task, model):
    """Trained, and nothing else: the delta on a fresh base scores the same; off, every bit is back."""
    assert model.paretune.changed
    scores = task.score(model)
    fresh = task.load_model(seed=7)
    model.delta().apply(fresh)
    assert task.score(fresh) == scores
    pt.detach(model)
    assert base_digest(model, ()) == base_digest(task.load_model(), ())


@pytest.mark.parametrize(("method", "budget"), METHODS)
def test_transformers_trainer(task, tmp_path, method, budget):
    model = tunable(task, method, budget)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        learning_rate=1e-2,
        weight_decay=0.1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=task.train, data_collator=task.collate).train()
    check(task, model)


@pytest.mark.parametrize(("method", "budget"), METHODS)
def test_accelerate(task, method, budget):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = tunable(task, method, budget)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loader = DataLoader(task.train, batch_size=8, shuffle=True, collate_fn=task.collate)
    prepared, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    prepared.train()
    for batch in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
    check(task, accelerator.unwrap_model(prepared).eval())


def test_a_loop_of_ones_own_in_a_notebook(task):
    model = tunable(task, "random", "3%")
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for batch in task.batches("train", 8):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    after = model.state_dict()
    assert before.keys() == after.keys()
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    assert 0 < changed <= model.paretune.plan.trained
    check(task, model.eval())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "budget"), [("random", "1%"), ("lora", "5%")])
def test_trl(tmp_path, method, budget):
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    from datasets import Dataset

    rows = tiny_rows("prompt", 40)
    task = pt.Task.from_rows(rows, model=tiny_model("gpt2", tmp_path / "gpt2"))
    model = tunable(task, method, budget)
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    data = Dataset.from_list(rows)
    trl.SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=task.tokenizer).train()
    check_unscored(task, model)


def check_unscored(task, model):
    """As :func:`check`, by logits: the task has no validation part."""
    model.eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert model.paretune.changed
    wanted = model(tokens).logits
    fresh = task.load_model(seed=7).eval()
    model.delta().apply(fresh)
    torch.testing.assert_close(fresh(tokens).logits, wanted)
    pt.detach(model)
    assert base_digest(model, ()) == base_digest(task.load_model(), ())


def test_tensorboard_gets_the_losses_and_tune_keeps_them(task, tmp_path):
    pytest.importorskip("tensorboardX", reason="neither tensorboard nor tensorboardX is installed")
    recipe = pt.Recipe(lr=1.0, steps=4, batch_size=8, checkpoints=0)
    pt.tune(task, "random", "3%", tmp_path / "run", lr=1e-2, recipe=recipe, report_to="tensorboard")
    events = [path.read_bytes() for path in (tmp_path / "run").rglob("events.out.tfevents.*")]
    assert any(b"train/loss" in content for content in events)


def test_trackio_gets_the_losses_and_nothing_leaves_this_machine(task, tmp_path):
    """In a process of its own: trackio settles when it is imported where it writes."""
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'paretune[trackio]'")
    folder = Path(task.model_id)
    words = ["tune", "--model", str(folder), "--train", str(folder.parent / "train.jsonl")]
    words += ["--validation", str(folder.parent / "validation.jsonl"), "--method", "random", "--budget", "3%"]
    words += [
        "--lr",
        "1e-2",
        "--steps",
        "4",
        "--out",
        str(tmp_path / "run"),
        "--report-to",
        "trackio",
        "--json",
    ]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, *words], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["method"] == "random"  # and not a word of trackio's beside it
    (written,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(written) as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "package"), [("trackio", "trackio"), ("tensorboard", "tensorboardX")])
def test_without_its_package_the_way_to_it_is_told(task, tmp_path, monkeypatch, name, package):
    monkeypatch.setattr("paretune.tuning.reporting.get_available_reporting_integrations", list)
    with pytest.raises(pt.PareError, match=f"{name}' needs its package: pip install {package}$"):
        pt.tune(task, "random", "3%", tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("tensorbord", "did you mean 'tensorboard'"), ("swanlab", "pip install swanlab")],
)
def test_reporting_that_cannot_work_is_told_before_anything_is_written(task, tmp_path, name, said):
    with pytest.raises(pt.PareError, match=said):
        pt.tune(task, "random", "3%", tmp_path / "run", report_to=[name])
    assert not (tmp_path / "run").exists()
