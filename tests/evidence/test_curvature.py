import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call, jvp

from paretune.errors import PareError
from paretune.evidence.curvature import Curvature, average, beyond, curvature
from paretune.evidence.forward_fit import fit
from paretune.evidence.groups import Direction, Group, Piece, find_direction
from paretune.evidence.labels import contrasts
from paretune.task import Task
from paretune.task.kinds import find_kind
from tests.tiny import tiny_model, tiny_rows, write_jsonl

DIRECTION, PROBE = range(0, 12), range(12, 24)
SHAPES = {"pair": "bert", "score": "bert", "text": "gpt2", "prompt": "t5"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    made = {}
    for shape, kind in SHAPES.items():
        folder = tmp_path_factory.mktemp(shape)
        rows = write_jsonl(folder / "train.jsonl", tiny_rows(shape, 40))
        made[shape] = Task.from_files(rows, rows, model=tiny_model(kind, folder / kind), max_length=16)
    return made


@pytest.fixture
def task(tasks):
    return tasks["pair"]


def load(task, dtype=torch.float64):
    return task.load_model(dtype=dtype).eval()


def groups_of(model, some=slice(None)):
    return [Group(name, (Piece(name),)) for name, _ in model.named_parameters()][some]


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return tensors, flags, [m.training for m in model.modules()], torch.get_rng_state()


def same(a, b):
    equal = all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    flags = all(
        f == g and (x is None) == (y is None) and (x is None or torch.equal(x, y))
        for (f, x), (g, y) in zip(a[1], b[1], strict=True)
    )
    return equal and flags and a[2] == b[2] and torch.equal(a[3], b[3])


class Moved:
    """A model with other values for some of its weights."""

    def __init__(self, model, values):
        self.model, self.values, self.forward = model, values, model.forward

    def __call__(self, **inputs):
        return functional_call(self.model, self.values, kwargs=inputs)

    def __getattr__(self, name):
        return getattr(self.model, name)


def gauss_newton(model, task, group, direction):
    """Mean over examples of dz^T (diag p - p p^T) dz, averaged over each example's tokens; by forward AD."""
    kind = find_kind(task.kind)
    total = 0.0
    for index in PROBE:
        batch = next(task.batches("train", 1, [index]))
        moved = {piece.tensor: direction.vectors[piece.tensor] for piece in group.pieces}
        start = {name: model.get_parameter(name).detach() for name in moved}

        def logits(values, batch=batch):
            return kind.logits(Moved(model, values), batch)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z, dz = jvp(logits, (start,), (moved,))
        if task.kind == "regression":
            total += float(2 * dz.square().sum())
            continue
        p = z.softmax(-1)
        each = (p * dz.square()).sum(-1) - (p * dz).sum(-1).square()
        if task.kind == "causal-lm":
            each = each[:, :-1][batch["labels"][:, 1:] != -100]
        elif task.kind == "seq2seq":
            each = each[batch["labels"] != -100]
        total += float(each.detach().mean())
    return total / len(PROBE)


def test_exact_is_the_hessian(task):
    model = load(task)
    names = ["bert.encoder.layer.0.attention.self.query.bias", "bert.encoder.layer.1.output.LayerNorm.weight"]
    groups = [Group(name, (Piece(name),)) for name in names]
    direction = find_direction(model, task, groups, DIRECTION, rule="gradient")
    found = curvature(model, task, groups, direction, PROBE, estimator="exact", matrix=True, batch_size=5)
    batch = next(task.batches("train", len(PROBE), list(PROBE)))

    def loss(*values):
        logits = functional_call(model, dict(zip(names, values, strict=True)), kwargs=batch).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"])

    start = tuple(model.get_parameter(name).detach() for name in names)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, start)
    gradient = torch.autograd.functional.jacobian(loss, start)
    u = [direction.vectors[name] for name in names]
    for i in range(2):
        assert found.slope[i] == pytest.approx(float(gradient[i] @ u[i]), rel=1e-9)
        for j in range(2):
            assert found.matrix[i, j] == pytest.approx(float(u[i] @ hessian[i][j] @ u[j]), rel=1e-7)
    assert found.curvature == pytest.approx(np.diagonal(found.matrix))


@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_fisher_converges_to_gauss_newton(tasks, shape):
    task = tasks[shape]
    model = load(task)
    wanted = [
        n for n, _ in model.named_parameters() if ("layer.1" in n or "h.1" in n or "decoder.block.1" in n)
    ]
    groups = [Group(name, (Piece(name),)) for name in wanted if name.endswith("weight")][:4]
    direction = find_direction(model, task, groups, DIRECTION)
    seeds = 60 if contrasts(task) is None else 1  # else the mean over labels is taken in full
    found = [
        curvature(model, task, groups, direction, PROBE, batch_size=12, seed=seed).curvature
        for seed in range(seeds)
    ]
    truth = [gauss_newton(model, task, group, direction) for group in groups]
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(seeds)
    assert (np.abs(mean - truth) <= 5 * error + 1e-6 * np.abs(truth)).all()
    assert (error < 0.25 * np.array(truth)).all()  # or the line above says nothing


@pytest.mark.parametrize("classes", [3, 5])
def test_more_classes(tmp_path, classes):
    rows = [{"text": f"a word {n}", "label": f"c{n % classes}"} for n in range(40)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    task = Task.from_files(path, path, model=tiny_model("bert", tmp_path / "bert"), max_length=16)
    model = load(task)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.classifier.weight)  # classes that are not all as likely
    names = ["bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.0.attention.self.value.bias"]
    groups = [Group(name, (Piece(name),)) for name in names]
    direction = find_direction(model, task, groups, DIRECTION)
    seeds = 1 if classes == 3 else 60
    probes = [
        curvature(model, task, groups, direction, PROBE, batch_size=5, seed=seed, matrix=True)
        for seed in range(seeds)
    ]
    found = np.array([probe.curvature for probe in probes])
    truth = np.array([gauss_newton(model, task, group, direction) for group in groups])
    tolerance = 5 * found.std(0) / np.sqrt(seeds) + 1e-6 * truth
    assert (np.abs(found.mean(0) - truth) <= tolerance).all()
    exact = curvature(model, task, groups, direction, PROBE, estimator="exact")
    assert probes[0].slope == pytest.approx(exact.slope, rel=1e-6)
    both = [Group("both", tuple(Piece(name) for name in names))]
    together = gauss_newton(model, task, both[0], direction)
    sums = [probe.matrix.sum() for probe in probes]
    assert np.mean(sums) == pytest.approx(together, rel=1e-6 if classes == 3 else 0.3)


def test_slope_is_the_gradient_of_the_independent_examples(task):
    model = load(task)
    groups = groups_of(model)
    direction = find_direction(model, task, groups, DIRECTION, rule="gradient")
    found = curvature(model, task, groups, direction, PROBE, batch_size=5)
    batch = next(task.batches("train", len(PROBE), list(PROBE)))
    model.zero_grad()
    task.example_losses(model, batch).mean().backward()
    for group, slope in zip(groups, found.slope, strict=True):
        gradient = model.get_parameter(group.name).grad
        assert slope == pytest.approx(float((gradient * direction.vectors[group.name]).sum()), abs=1e-12)


def test_forward_fit_agrees_with_exact(task):
    model = load(task)
    groups = groups_of(model)
    direction = find_direction(model, task, groups, DIRECTION)
    fitted = curvature(model, task, groups, direction, PROBE, estimator="forward-fit")
    truth = curvature(model, task, groups, direction, PROBE, estimator="exact")
    both = fitted.usable & truth.usable
    assert both.sum() > 0.4 * len(groups)
    assert fitted.slope[both] == pytest.approx(truth.slope[both], rel=0.02, abs=1e-6)
    assert np.median(np.abs(fitted.curvature[both] / truth.curvature[both] - 1)) < 0.02


def test_fit_recovers_a_parabola_and_mistrusts_noise():
    points = np.array([-2.0, -1, 0, 1, 2])
    line, parabola, quality = fit(3 * points + 0.5 * points**2)
    assert (line, parabola, quality) == pytest.approx((3, 1, 1))
    noise = np.random.default_rng(0).normal(size=(200, 5))
    qualities = [fit(100 * points + row)[2] for row in noise]
    assert np.mean(np.array(qualities) > 0.9) < 0.2  # the plain R^2 of all of these is above 0.99


@pytest.mark.parametrize("estimator", ["sampled-fisher", "exact"])
def test_blocks_of_rows_add_up_through_the_matrix(task, estimator):
    model = load(task)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tokens = "bert.embeddings.word_embeddings.weight"
    whole = [Group("whole", (Piece(name),)), Group("tokens", (Piece(tokens),))]
    rows = len(model.get_parameter(tokens))
    cut = [
        Group("a", (Piece(name, (0, 20)),)),
        Group("b", (Piece(name, (20, 64)),)),
        Group("c", (Piece(tokens, (0, 50)),)),
        Group("d", (Piece(tokens, (50, rows)),)),
    ]
    direction = find_direction(model, task, whole, DIRECTION, rule="gradient")
    one, other = (
        curvature(model, task, groups, direction, PROBE, estimator=estimator, matrix=True)
        for groups in (whole, cut)
    )
    join = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    assert join @ other.slope == pytest.approx(one.slope)
    assert join @ other.matrix @ join.T == pytest.approx(one.matrix)


def test_adamw_direction_is_its_next_step(task):
    model = load(task)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0)
    batch = next(task.batches("train", len(DIRECTION), list(DIRECTION)))
    for _ in range(3):
        optimiser.zero_grad()
        task.example_losses(model, batch).mean().backward()
        optimiser.step()
    before = copy.deepcopy(optimiser.state_dict())
    groups = groups_of(model)
    direction = find_direction(model, task, groups, DIRECTION, optimiser=optimiser)
    after = optimiser.state_dict()
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser.zero_grad()
    task.example_losses(model, batch).mean().backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        if name not in direction.dead:
            expected = (weights[name] - parameter.detach()) / 1e-3
            torch.testing.assert_close(direction.vectors[name], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bias_of_attention_keys_is_dead(task, dtype):
    model = load(task, dtype)
    direction = find_direction(model, task, groups_of(model), DIRECTION)
    assert direction.dead == {f"bert.encoder.layer.{n}.attention.self.key.bias" for n in (0, 1)}
    found = curvature(model, task, groups_of(model), direction, PROBE)
    assert found.state.count("no gradient") == 2
    assert np.isnan(found.gain[~found.usable]).all()


@pytest.mark.parametrize("estimator", ["sampled-fisher", "exact", "forward-fit"])
@pytest.mark.parametrize("fails", [False, True])
def test_probes_leave_no_trace(task, estimator, fails, monkeypatch):
    model = load(task, torch.float32).train()
    parameters = list(model.parameters())
    parameters[3].requires_grad_(False)
    parameters[5].grad = torch.ones_like(parameters[5])
    groups = groups_of(model, slice(5, 12))
    direction = find_direction(model, task, groups, DIRECTION)
    before = state_of(model)
    if fails:
        calls = []

        def failing(*_):
            calls.append(1)
            if len(calls) > 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(model, "_forward_pre_hooks", {0: failing})
        with pytest.raises(KeyboardInterrupt):
            curvature(model, task, groups, direction, PROBE, estimator=estimator, batch_size=2)
    else:
        curvature(model, task, groups, direction, PROBE, estimator=estimator, batch_size=5)
    assert same(before, state_of(model))


def test_what_the_head_can_do_is_nobodys_gain():
    factor = np.random.default_rng(0).normal(size=(9, 5))
    matrix, slope = factor.T @ factor, np.arange(1.0, 6)
    probe = Curvature(tuple("abcde"), slope, np.diagonal(matrix), ("usable",) * 5, matrix)
    found = beyond(probe, 2)
    inverse = np.linalg.inv(matrix[3:, 3:])
    assert found.slope == pytest.approx(slope[:3] - matrix[:3, 3:] @ inverse @ slope[3:])
    assert found.matrix == pytest.approx(matrix[:3, :3] - matrix[:3, 3:] @ inverse @ matrix[3:, :3])
    assert found.names == ("a", "b", "c")


def test_a_group_that_does_what_the_head_does_has_nothing_left():
    matrix = np.array([[4.0, 2], [2, 1]])
    probe = Curvature(("a", "head"), np.array([2.0, 1]), np.array([4.0, 1]), ("usable",) * 2, matrix)
    assert beyond(probe, 1).state == ("curvature <= 0",)


def test_averages_are_over_valid_probes():
    def probe(gain, state):
        slope = np.array([gain, 1.0])
        return Curvature(("a", "b"), slope, np.array([0.5, 0.5]), (state, "usable"))

    found = average([probe(1.0, "usable"), probe(3.0, "usable"), probe(np.nan, "not finite")])
    assert found.gain == pytest.approx([5.0, 1.0])
    assert found.share == pytest.approx([2 / 3, 1])
    assert found.usable_share == pytest.approx(5 / 6)
    assert found.states == {"usable": 5, "not finite": 1}


def test_a_rising_slope_comes_after_all_that_fall():
    probe = Curvature(("a", "b"), np.array([-2.0, 1.0]), np.array([1.0, 1.0]), ("usable",) * 2)
    assert probe.gain == pytest.approx([0.002, 0.5])


def test_bad_requests(task):
    model = load(task, torch.float32)
    groups = groups_of(model, slice(5, 7))
    direction = find_direction(model, task, groups, DIRECTION)
    with pytest.raises(PareError, match="'hessian' is none of sampled-fisher"):
        curvature(model, task, groups, direction, PROBE, estimator="hessian")
    with pytest.raises(PareError, match="no matrix"):
        curvature(model, task, groups, direction, PROBE, estimator="forward-fit", matrix=True)
    with pytest.raises(PareError, match="'sgd' is none of gradient, adamw"):
        find_direction(model, task, groups, DIRECTION, rule="sgd")
    half = model.to(torch.bfloat16)
    with pytest.raises(PareError, match="bfloat16 cannot hold"):
        curvature(half, task, groups, direction, PROBE, estimator="forward-fit")
    zero = load(task)
    torch.nn.init.zeros_(zero.classifier.weight)
    with pytest.raises(PareError, match="every gradient is zero"):
        find_direction(zero, task, groups, DIRECTION)
    broken = load(task)
    broken.classifier.weight.data[0, 0] = torch.inf
    for estimator in ("sampled-fisher", "forward-fit"):
        with pytest.raises(PareError, match=r"loss .*(inf|nan)"):
            curvature(
                broken, task, groups, Direction(direction.vectors, frozenset()), PROBE, estimator=estimator
            )
