import copy

import pytest
import torch

from paretune.methods import choose
from paretune.methods.probe import halves
from paretune.search.predict import predicted_gain
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    made = {}
    for kind, shape in (("bert", "single"), ("llama", "prompt"), ("roberta", "score")):
        folder = tmp_path_factory.mktemp(kind)
        rows = write_jsonl(folder / "train.jsonl", tiny_rows(shape, 120))
        made[shape] = Task.from_files(rows, model=tiny_model(kind, folder / "model"))
    return made


@pytest.mark.parametrize("shape", ["single", "prompt", "score"])
def test_every_kind_of_task_and_plan_has_a_gain_and_the_model_stays(tasks, shape):
    task = tasks[shape]
    model = task.load_model()
    before = copy.deepcopy(model.state_dict())
    gains = {}
    for method, settings in (("random", {}), ("lora", {"targets": "all"}), ("full", {})):
        plan = choose(method, model, task, None if method == "full" else "5%", **settings)
        gains[method] = predicted_gain(model, task, plan, samples=80)
    assert all(gain >= 0 for gain in gains.values())
    assert gains["full"] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not hasattr(model, "paretune")


def test_the_gain_is_that_of_autograd(tasks):
    """Slope, curvature and what the head takes of both, by double backward on the same halves."""
    task = tasks["single"]
    model = task.load_model().double().eval()
    with torch.no_grad():  # so that examples differ by more than which class is the commoner
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() == 2 else 1)
    plan = choose("bitfit", task.load_model(), task)
    first, second = halves(task, 60, 0)
    head = [selection.tensor for selection in plan.head]
    own = [selection.tensor for selection in plan.selections]
    parameters = dict(model.named_parameters())
    (batch,) = task.batches("train", 60, first)
    task.example_losses(model, batch).mean().backward()
    step = {name: parameters[name].grad.clone() for name in own + head}
    step = {name: g / (g.abs() + 1e-8) for name, g in step.items()}
    (batch,) = task.batches("train", 60, second)

    def outputs(x, y):
        moved = {name: parameters[name].detach() - (x if name in own else y) * u for name, u in step.items()}
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = torch.func.functional_call(model, moved, kwargs=inputs).logits
        return logits, torch.nn.functional.cross_entropy(logits, batch["labels"])

    zero = torch.zeros((), dtype=torch.float64)
    logits, _ = outputs(zero, zero)
    slopes, changes = [], []
    for which in (0, 1):
        point = [zero.clone().requires_grad_(which == 0), zero.clone().requires_grad_(which == 1)]
        slopes.append(-torch.autograd.grad(outputs(*point)[1], point[which])[0].item())
        h = 1e-5
        ahead = outputs(*[h * (which == n) + zero for n in (0, 1)])[0]
        back = outputs(*[-h * (which == n) + zero for n in (0, 1)])[0]
        changes.append((ahead - back).detach() / (2 * h))
    p = logits.detach().softmax(1)
    q = torch.tensor(
        [[(p * (a - (p * a).sum(1, keepdim=True)) * b).sum(1).mean() for b in changes] for a in changes]
    )
    b0 = slopes[0] - q[0, 1] / q[1, 1] * slopes[1]
    expected = float(b0**2 / (2 * (q[0, 0] - q[0, 1] ** 2 / q[1, 1]))) if b0 > 0 else 0.0
    assert expected > 0
    found = predicted_gain(model, task, plan, samples=60, batch_size=60)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_nothing_beside_the_head_promises_nothing(tasks):
    task = tasks["single"]
    model = task.load_model()
    assert predicted_gain(model, task, choose("head", model, task), samples=40) == 0.0
