import copy
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from paretune.delta import Delta
from paretune.errors import DivergedError, PareError
from paretune.methods import choose
from paretune.plan import Plan, Selection
from paretune.search.tune import tune
from paretune.task import Task
from paretune.tuning import Recipe, attach, detach, train
from tests.processes import ended, start
from tests.tiny import tiny_model, tiny_rows, write_jsonl

QUICK = Recipe(lr=5e-3, steps=6, batch_size=8, checkpoints=0)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    model = tiny_model("bert", folder / "bert")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 120))
    return Task.from_files(rows, rows, model=model)


def every_entry(plan):
    """The same plan with write-through entries: all of them, in place of whole tensors."""

    def entries(parts):
        return tuple(Selection(s.tensor, s.shape, "entries", np.arange(s.numel)) for s in parts)

    return replace(plan, selections=entries(plan.selections), head=entries(plan.head))


def weights_after(task, plan, tmp_path, recipe=QUICK, **settings):
    model = task.load_model()
    attach(model, plan)
    train(model, task, tmp_path, recipe, **settings)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_entry_selected_is_full_fine_tuning(task, tmp_path):
    full = choose("full", task.load_model(), task)
    wanted = weights_after(task, full, tmp_path / "a", replace(QUICK, weight_decay=0.1))
    found = weights_after(task, every_entry(full), tmp_path / "b", replace(QUICK, weight_decay=0.1))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_full_is_what_a_plain_trainer_does(task, tmp_path):
    from transformers import Trainer

    from paretune.tuning.train import _arguments

    model = task.load_model()
    arguments = _arguments(QUICK, tmp_path / "plain", len(task.train), 0, "none")
    Trainer(model=model, args=arguments, train_dataset=task.train, data_collator=task.collate).train()
    found = weights_after(task, choose("full", task.load_model(), task), tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_nothing_selected_is_frozen(task, tmp_path):
    before = task.load_model().state_dict()
    found = weights_after(task, choose("head", task.load_model(), task), tmp_path)
    for name, tensor in found.items():
        assert torch.equal(tensor, before[name]) != name.startswith("classifier"), name


def test_accumulation_is_a_larger_batch(task, tmp_path):
    model = task.load_model(dtype=torch.float64)  # Adam turns rounding of a gradient near zero into a step
    plan = choose("random", model, task, "5%")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = task.train.select(range(32))  # one batch: both see the same examples in a step
    found = []
    for name, size, times in (("one", 32, 1), ("four", 8, 4)):
        attach(model, plan)
        recipe = Recipe(lr=1e-3, steps=3, batch_size=size, accumulation=times, checkpoints=0)
        train(model, task, tmp_path / name, recipe, examples=rows)
        found.append({n: p.detach().clone() for n, p in model.paretune.trained.items()})
        detach(model)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16"])
@pytest.mark.parametrize("method", ["random", "lora", "bitfit"])
def test_unselected_weights_stay_bit_equal(task, tmp_path, method, precision):
    recipe = replace(QUICK, precision=precision, weight_decay=0.1, accumulation=2)
    model = task.load_model(dtype=recipe.dtype)
    before = copy.deepcopy(model.state_dict())
    plan = choose(method, model, task, None if method == "bitfit" else "2%")
    attach(model, plan)
    train(model, task, tmp_path, recipe)
    selected = {s.tensor: s for s in (*plan.selections, *plan.head)}
    for name, tensor in model.state_dict().items():
        name = name.replace(".base_layer", "")
        if "lora_" in name:
            continue
        mask = np.ones(tensor.numel(), dtype=bool)
        if name in selected:
            mask[selected[name].flat()] = False
        old = before[name].reshape(-1).float().numpy()
        assert np.array_equal(old[mask], tensor.reshape(-1).float().numpy()[mask]), name
    detach(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_bf16_trains_fp32_masters(task, tmp_path):
    recipe = replace(QUICK, precision="bf16", lr=1e-5)  # far below the spacing of bf16
    model = task.load_model(dtype=recipe.dtype)
    attach(model, choose("random", model, task, "5%"))
    train(model, task, tmp_path, recipe)
    slots = model.paretune.slots
    assert all(slot.values.dtype == torch.float32 for slot in slots.values())
    assert any(not torch.equal(slot.values, slot.original.float()) for slot in slots.values())


class KillAt(TrainerCallback):
    """Ends the process without warning after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, out, precision, kill=0):
    """A whole run of the plan in the folder, as it is done in a process that ends at a step."""
    task = Task.from_files(folder / "train.jsonl", model=folder / "bert")
    recipe = Recipe(lr=5e-3, steps=12, batch_size=8, checkpoints=4, precision=precision)
    model = attach(task.load_model(dtype=recipe.dtype), Plan.load(folder / f"plan-{precision}"))
    train(model, task, out, recipe, callbacks=[KillAt(kill)] if kill else [])
    model.delta().save(out / "delta.safetensors")
    return (out / "delta.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, precision):
    model = tiny_model("bert", tmp_path / "bert")
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 50))  # two epochs and a part
    task = Task.from_files(tmp_path / "train.jsonl", model=model)
    dtype = Recipe(lr=1.0, precision=precision).dtype
    choose("random", task.load_model(dtype=dtype), task, "5%").save(tmp_path / f"plan-{precision}")
    whole = run(tmp_path, tmp_path / "whole", precision)
    steps = sorted(np.random.default_rng().choice(np.arange(1, 12), 2, replace=False).tolist())
    for step in steps:
        process = start(tmp_path / "said", run, tmp_path, tmp_path / "killed", precision, step)
        # a checkpoint may already lie beyond the step to be killed at
        assert ended(process) == -signal.SIGKILL or (tmp_path / "killed/delta.safetensors").exists(), (
            steps,
            (tmp_path / "said/stderr").read_text(),
        )
    assert run(tmp_path, tmp_path / "killed", precision) == whole, f"killed after steps {steps}"


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_something_to_resume_from(tmp_path):
    model = tiny_model("bert", tmp_path / "bert")
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 120))
    task = Task.from_files(tmp_path / "train.jsonl", model=model)
    choose("random", task.load_model(), task, "5%").save(tmp_path / "plan-fp32")
    begun = time.perf_counter()
    assert ended(start(tmp_path / "said", run, tmp_path, tmp_path / "whole", "fp32")) == 0
    seconds = time.perf_counter() - begun
    rng = np.random.default_rng()
    for _ in range(6):
        process = start(tmp_path / "said", run, tmp_path, tmp_path / "killed", "fp32")
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        process.kill()
        process.join()
    wanted = (tmp_path / "whole/delta.safetensors").read_bytes()
    assert run(tmp_path, tmp_path / "killed", "fp32") == wanted


def test_a_checkpoint_holds_the_delta_and_not_the_base(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "1%"))
    train(model, task, tmp_path, replace(QUICK, checkpoints=2))
    folder = tmp_path / "checkpoint-6"
    names = {path.name for path in folder.iterdir()}
    assert {"delta.safetensors", "complete.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert "model.safetensors" not in names
    base = sum(p.numel() * 4 for p in model.parameters())
    assert sum(path.stat().st_size for path in folder.iterdir()) < base / 2
    assert Delta.load(folder / "delta.safetensors").plan_digest == model.paretune.plan.digest


def test_an_unfinished_checkpoint_is_not_resumed(task, tmp_path):
    model = task.load_model()
    plan = choose("random", model, task, "1%")
    attach(model, plan)
    train(model, task, tmp_path, replace(QUICK, checkpoints=2))
    wanted = model.delta().digest
    (tmp_path / "checkpoint-6/complete.json").unlink()
    (tmp_path / "checkpoint-6/optimizer.pt").write_bytes(b"half")
    detach(model)
    attach(model, plan)
    result = train(model, task, tmp_path, replace(QUICK, checkpoints=2))
    assert result.steps == 6
    assert model.delta().digest == wanted


def test_another_run_in_the_folder_is_refused(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "1%"))
    train(model, task, tmp_path, replace(QUICK, checkpoints=1))
    with pytest.raises(PareError, match=r"another run \(different: lr 0.005 there, 0.001 now"):
        train(model, task, tmp_path, replace(QUICK, checkpoints=1, lr=1e-3))


def test_training_that_changes_nothing_is_an_error(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "1%"))
    with pytest.raises(PareError, match="changed none"):
        train(model, task, tmp_path, replace(QUICK, lr=1e-60))  # below what fp32 holds


def test_divergence_stops_the_run(task, tmp_path):
    model = task.load_model()
    attach(model, choose("full", model, task))
    with pytest.raises(DivergedError, match="smaller --lr"):
        train(model, task, tmp_path, replace(QUICK, lr=1e30, steps=20))


def test_training_needs_a_plan(task, tmp_path):
    with pytest.raises(PareError, match="no plan is attached"):
        train(task.load_model(), task, tmp_path, QUICK)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 1e-3, "steps": 0}, "steps is 0"),
        ({"lr": 1e-3, "warmup": 2}, "warmup is 2"),
        ({"lr": 1e-3, "weight_decay": -1}, "weight_decay is -1"),
        ({"lr": 1e-3, "checkpoints": -1}, "checkpoints is -1"),
        ({"lr": 1e-3, "precision": "fp8"}, "precision 'fp8'"),
    ],
)
def test_settings_out_of_range_are_named(settings, said):
    with pytest.raises(PareError, match=said):
        Recipe(**settings)


def test_settings_by_name(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "1%"))
    with pytest.raises(PareError, match="unknown training setting 'learning_rate'"):
        train(model, task, tmp_path, learning_rate=1e-3)
    with pytest.raises(PareError, match="no learning rate"):
        train(model, task, tmp_path, steps=3)
    result = train(model, task, tmp_path, lr=1e-3, steps=3, checkpoints=0)
    assert result.steps == 3
    assert [step for step, _ in result.losses] == [1, 2, 3]


def test_steps_are_counted_as_trainer_counts_them():
    recipe = Recipe(lr=1.0, epochs=3, batch_size=32, accumulation=4)
    assert recipe.total_steps(1000) == 24  # 32 batches, 8 steps an epoch
    assert Recipe(lr=1.0, epochs=0.5, batch_size=32).total_steps(100) == 2


def test_of_several_gpus_one_is_used_unless_a_launcher_starts_more(tmp_path, monkeypatch):
    """Trainer would put the model into `nn.DataParallel`, whose copies train nothing of a mask."""
    from paretune.tuning.train import _arguments

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    arguments = _arguments(QUICK, tmp_path, 100, 0, "none")
    assert arguments.device.type == "cuda"
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == QUICK.batch_size


@pytest.mark.parametrize("ampere", [True, False])
def test_autocast_is_in_fp16_on_a_gpu_without_bf16(ampere, tmp_path, monkeypatch):
    from paretune.tuning.train import _arguments

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: ampere)
    arguments = _arguments(replace(QUICK, precision="amp"), tmp_path, 100, 0, "none")
    assert (arguments.bf16, arguments.fp16) == (ampere, not ampere)
    arguments = _arguments(QUICK, tmp_path, 100, 0, "none")
    assert not (arguments.bf16 or arguments.fp16)


def test_a_model_that_cannot_recompute_is_refused_before_choosing(tmp_path, monkeypatch):
    folder = tiny_model("bert", tmp_path / "bert")
    task = Task.from_rows(tiny_rows("single", 20), tiny_rows("single", 9), model=folder)
    monkeypatch.setattr("transformers.BertForSequenceClassification.supports_gradient_checkpointing", False)
    monkeypatch.setattr("paretune.search.tune.choose", None)
    recipe = replace(QUICK, gradient_checkpointing=True)
    with pytest.raises(PareError, match="BertForSequenceClassification cannot recompute activations"):
        tune(task, "fish", "5%", tmp_path / "out", recipe=recipe)
    model = task.load_model()
    attach(model, choose("random", task.load_model(), task, "5%"))
    with pytest.raises(PareError, match="leave --gradient-checkpointing out"):
        train(model, task, tmp_path / "run", recipe)


def test_the_launcher_s_precision_does_not_replace_the_recipe_s(task, tmp_path, monkeypatch):
    plan = choose("random", task.load_model(), task, "5%")
    wanted = weights_after(task, plan, tmp_path / "a")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    found = weights_after(task, plan, tmp_path / "b")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("method", ["fish", "lora"])
def test_a_scaled_loss_in_fp16_trains_the_same(task, method):
    """What Trainer does under fp16, and refuses on a CPU; a step whose gradients overflow is left out."""

    def trained(half, scale):
        torch.manual_seed(0)
        model = task.load_model().eval()  # no dropout
        attach(model, choose(method, task.load_model(), task, "5%"))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        before = [p.detach().clone() for p in parameters]
        for batch in task.batches("train", 16, range(64)):
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])
        return moved, scaler.get_scale()

    wanted, _ = trained(half=False, scale=1.0)
    found, scale = trained(half=True, scale=2.0**12)
    assert scale == 2.0**12
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.999
    overflowing, scale = trained(half=True, scale=2.0**30)
    assert scale < 2.0**30
    assert overflowing.isfinite().all()


def test_data_parallel_copies_are_refused(task):
    model = attach(task.load_model(), choose("random", task.load_model(), task, "5%"))
    with pytest.raises(PareError, match=r"DataParallel.*torchrun"):
        for module in model.modules():  # as torch.nn.DataParallel does before every step
            module._replicate_for_data_parallel()


def test_callbacks_and_gradient_checkpointing_work(task, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    plan = choose("random", task.load_model(), task, "5%")
    plain = weights_after(task, plan, tmp_path / "a")
    recipe = replace(QUICK, gradient_checkpointing=True)
    recomputed = weights_after(task, plan, tmp_path / "b", recipe, callbacks=[Watch()])
    assert seen == [1, 2, 3, 4, 5, 6]
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_bare_loop_trains_the_same_model(task):
    model = task.load_model()
    attach(model, choose("random", model, task, "5%"))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = next(iter(task.batches("train", 8)))
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert json.dumps(model.delta(step=5).info)


def test_the_plan_survives_its_folder(task, tmp_path):
    model = task.load_model()
    plan = choose("lora", model, task, "3%", rank=None)
    plan.save(tmp_path / "plan")
    again = weights_after(task, Plan.load(tmp_path / "plan"), tmp_path / "a")
    for name, tensor in weights_after(task, plan, tmp_path / "b").items():
        assert torch.equal(again[name], tensor), name


def test_a_model_comes_back_from_autocast(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "5%"))
    seen = []
    hook = model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, given, made: seen.append(made.dtype)
    )
    for name in ("one", "two"):  # the second training is under autocast as well
        seen.clear()
        train(model, task, tmp_path / name, replace(QUICK, precision="amp"))
        assert torch.bfloat16 in seen
        assert "forward" not in model.__dict__
        seen.clear()
        task.score(model, "validation")
        assert set(seen) == {torch.float32}
    hook.remove()
