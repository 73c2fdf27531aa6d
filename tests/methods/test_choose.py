import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.anatomy import anatomy
from paretune.delta import delta_bytes
from paretune.errors import PareError
from paretune.methods import choose, make_method
from paretune.methods.choose import candidates_of
from paretune.methods.lora import fill_ranks
from paretune.methods.random import draw
from paretune.task import Task
from paretune.tuning import attach
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert", blocks=3))


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (("fisch", "1%"), {}, r"no method 'fisch' \(did you mean 'fish'\?\)"),
        (("fish", "1%"), {"sample": 3}, r"no setting 'sample' \(did you mean 'samples'\?\)"),
        (("lora", "1%"), {"targets": "most"}, "targets 'most'"),
        (("lora", "1%"), {"rank": 0}, "rank 0"),
        (("lora", "10%"), {"rank": 900}, "leave rank out"),
        (("lora", "10"), {}, "raise the budget"),
        (("random", None), {}, "needs a budget"),
        (("random", "0.0000001%"), {}, "less than one weight"),
        (("random", "900G"), {}, "the model has"),
        (("bitfit", "10"), {}, "above the budget of 10"),
        (("random", "1%"), {"exclude": ["*poller*"]}, r"pattern '\*poller\*' matches no tensor"),
        (("random", "1%"), {"exclude": ["*"]}, "above the 0 that may be selected"),
    ],
)
def test_bad_requests_say_the_way_out(task, arguments, settings, said):
    with pytest.raises(PareError, match=said):
        choose(arguments[0], task.load_model(), task, arguments[1], **settings)


def test_magnitude_is_the_brute_force_ranking(task):
    model = task.load_model()
    plan = choose("magnitude", model, task, 500)
    body = {n: p for n, p in model.named_parameters() if not n.startswith("classifier")}
    everything = torch.cat([p.detach().abs().reshape(-1) for p in body.values()])
    least = everything.sort(descending=True).values[499]
    chosen = torch.cat([body[s.tensor].detach().abs().reshape(-1)[s.flat()] for s in plan.selections])
    assert len(chosen) == 500
    assert chosen.min() == least
    smallest = choose("magnitude", model, task, 500, largest=False)
    assert {s.tensor for s in smallest.selections} != {s.tensor for s in plan.selections}


@pytest.mark.parametrize("method", ["fish", "gradient"])
def test_gradient_methods_are_the_brute_force_ranking(task, method):
    model = task.load_model(dtype=torch.float64)
    plan = choose(method, model, task, 300, samples=len(task.train), reading="published")
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if not n.startswith("classifier")}
    for batch in task.batches("train", 1):
        model.zero_grad()
        task.example_losses(model, batch).sum().backward()
        for name, total in sums.items():
            total += model.get_parameter(name).grad ** (2 if method == "fish" else 1)
    everything = torch.cat([total.abs().reshape(-1) for total in sums.values()])
    least = everything.sort(descending=True).values[299]
    chosen = torch.cat([sums[s.tensor].abs().reshape(-1)[s.flat()] for s in plan.selections])
    assert len(chosen) == 300
    assert chosen.min() >= least * (1 - 1e-9)  # equal scores differ by rounding
    assert plan.notes["samples"] == len(task.train)


def test_random_masks_differ_by_tensor_and_by_seed(task):
    model = task.load_model()
    one, other = (choose("random", model, task, "10%", seed=seed) for seed in (0, 1))
    masks = {s.tensor: s.indices for s in one.selections}
    first, second = (masks[f"bert.encoder.layer.{i}.attention.self.query.weight"] for i in (0, 1))
    assert first.tolist() != second.tolist()
    assert masks[one.selections[0].tensor].tolist() != other.selections[0].indices.tolist()


@given(st.integers(1, 60), st.data())
def test_draw_gives_different_numbers_in_order(total, data):
    count = data.draw(st.integers(0, total))
    drawn = draw(np.random.default_rng(0), total, count)
    assert len(drawn) == count == len(set(drawn.tolist()))
    assert drawn.tolist() == sorted(drawn.tolist())
    assert count == 0 or 0 <= drawn[0] <= drawn[-1] < total


@pytest.mark.parametrize("count", [2, 7])
def test_draw_is_uniform(count):
    rng = np.random.default_rng(1)
    seen = np.bincount(np.concatenate([draw(rng, 10, count) for _ in range(20_000)]), minlength=10)
    assert np.abs(seen / 20_000 - count / 10).max() < 5 * np.sqrt(0.25 / 20_000)


def test_draw_from_a_huge_range_takes_little():
    assert len(draw(np.random.default_rng(0), 10**15, 1000)) == 1000


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 20), st.integers(0, 400))
def test_ranks_spend_what_they_can_and_no_more(costs, rank, extra):
    k = rank * sum(costs) + extra
    ranks = fill_ranks(costs, k)
    spent = sum(r * c for r, c in zip(ranks, costs, strict=True))
    assert spent <= k
    assert max(ranks) - min(ranks) <= 1
    left_out = [c for r, c in zip(ranks, costs, strict=True) if r == min(ranks)]
    assert max(ranks) == min(ranks) or all(c > k - spent for c in left_out)


def test_lora_targets(task):
    model = task.load_model()
    everything = choose("lora", model, task, "10%", targets="all")
    query_value = choose("lora", model, task, "10%", targets="peft")
    assert {a.module.split(".")[-1] for a in query_value.additions} == {"query", "value"}
    assert len(everything.additions) == 3 * 6
    assert everything.notes["targets"] == "all"
    small = choose("lora", model, task, 3 * 6 * 2 * 32)
    assert small.notes["targets"] == "attention" or small.notes["targets"] == "peft"


def test_settings_of_a_made_method_belong_to_it(task):
    with pytest.raises(PareError, match="to the method itself"):
        choose(make_method("lora", {"rank": 1}), task.load_model(), task, None, rank=2)
    assert choose(make_method("lora", {"rank": 1}), task.load_model(), task).additions[0].size == 1


@pytest.mark.parametrize("method", ["random", "fish", "lora"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("asked", ["6KiB", "20KB"])
def test_a_budget_in_bytes_is_the_size_of_the_file(task, tmp_path, method, dtype, asked):
    model = task.load_model()
    limit = {"6KiB": 6 * 1024, "20KB": 20_000}[asked]
    settings = {"samples": 16} if method == "fish" else {}
    plan = choose(method, model, task, asked, delta_dtype=dtype, **settings)
    attach(model, plan)
    delta = model.delta(scores={"accuracy": 0.123456789}, lr=1e-3)
    (delta.to(dtype) if dtype else delta).save(tmp_path / "delta.safetensors")
    size = (tmp_path / "delta.safetensors").stat().st_size
    assert size <= limit
    assert method == "lora" or size > 0.7 * limit
    assert plan.asked == asked


def test_too_few_bytes_for_the_head_are_refused(task):
    with pytest.raises(PareError, match="no room for 'random' beside the head"):
        choose("random", task.load_model(), task, "1KB")


@pytest.mark.parametrize("asked", ["9KB", "10KB", "11KB", "12KB", "16KB"])
def test_added_modules_on_a_half_precision_base_get_the_bytes_they_take(task, asked):
    model = task.load_model(dtype=torch.bfloat16)  # LoRA's values ship in fp32 all the same
    plan = choose("lora", model, task, asked, targets="all")
    assert 0.75 * float(asked[:-2]) < delta_bytes(plan) / 1000 <= float(asked[:-2])
    bitfit = choose("bitfit", model, task)
    just = delta_bytes(bitfit) + 100  # the budget's own text is kept in the file as well
    assert choose("bitfit", model, task, f"{just / 1000}KB").count == bitfit.count


def test_bytes_above_what_may_be_selected_are_no_refusal(task):
    model = task.load_model()
    exclude = ["*layer*", "*word_embeddings*", "*pooler*"]
    plan = choose("random", model, task, "80KB", exclude=exclude)
    assert plan.count == sum(t.count for t in candidates_of(anatomy(model), exclude))
    with pytest.raises(PareError, match="above the 0 that may be selected"):
        choose("random", model, task, "80KB", exclude=["*"])


def test_bitfit_without_biases_names_what_adds_them(tmp_path):
    rows = [{"text": row["text"]} for row in tiny_rows("single", 9)]
    task = Task.from_rows(rows, model=tiny_model("llama", tmp_path))
    with pytest.raises(PareError, match="no biases to train; the method 'bias' adds some"):
        choose("bitfit", task.load_model(), task)
    assert choose("bias", task.load_model(), task).additions
