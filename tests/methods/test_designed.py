import pytest
import torch

from paretune.errors import PareError
from paretune.methods import METHODS, choose, make_method
from paretune.methods.design import Design
from paretune.plan import Plan
from paretune.task import Task
from paretune.tuning import attach, detach
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    def make(kind, shape, blocks):
        folder = tmp_path_factory.mktemp(kind)
        rows = write_jsonl(folder / "train.jsonl", tiny_rows(shape, 40))
        return Task.from_files(rows, rows, model=tiny_model(kind, folder / "model", blocks=blocks))

    return {
        "bert": make("bert", "pair", 6),
        "t5": make("t5", "prompt", 2),
        "llama": make("llama", "prompt", 4),
        "gpt2": make("gpt2", "text", 2),
    }


def by_block(plan):
    """Strategies of each block, read from what the plan trains."""
    found = {}
    for name, (block, _) in plan.places.items():
        strategy = name.split(":")[0] if ":" in name else "bias"
        found.setdefault(block, set()).add(strategy)
    return found


def test_s4_is_the_published_assignment(tasks):
    plan = choose("s4", tasks["bert"].load_model(), tasks["bert"], "20%")
    assert plan.notes["group_sizes"] == [1, 2, 2, 1]
    first, second = {"adapter", "lora"}, {"adapter", "prefix"}
    third, fourth = {"adapter", "prefix", "bias"}, {"prefix", "bias", "lora"}
    assert by_block(plan) == dict(enumerate([first, second, second, third, third, fourth]))
    assert plan.notes["count"] == plan.count
    assert plan.notes["left_over"] == plan.budget - plan.count


def test_existing_biases_are_selected_and_absent_ones_added(tasks):
    bert = choose("bias", tasks["bert"].load_model(), tasks["bert"])
    assert not bert.additions
    assert all(selection.tensor.endswith("bias") for selection in bert.selections)
    assert not any("embeddings" in selection.tensor for selection in bert.selections)
    for kind in ("t5", "llama"):
        plan = choose("bias", tasks[kind].load_model(), tasks[kind])
        assert not plan.selections
        assert {addition.strategy for addition in plan.additions} == {"bias"}
        assert {place[0] for place in plan.places.values()} == {0, 1, 2, 3}
    with pytest.raises(PareError, match=r"the budget is 10; raise the budget"):
        choose("bias", tasks["bert"].load_model(), tasks["bert"], 10)


def test_ranks_end_at_the_smaller_side_of_a_matrix(tasks):
    model = tasks["llama"].load_model()
    plan = choose(
        "design", model, tasks["llama"], "95%", strategies=[["lora"]], settings={"lora": {"targets": "peft"}}
    )
    assert plan.notes["at_its_end"]
    for addition in plan.additions:
        assert addition.size == min(model.get_submodule(addition.module).weight.shape)


def test_prefixes_end_at_the_positions_of_the_model(tasks):
    plan = choose("prefix", tasks["gpt2"].load_model(), tasks["gpt2"], "60%")
    assert {addition.size for addition in plan.additions} == {64}
    assert "buys nothing" in plan.notes["at_its_end"]


def test_a_design_from_a_file_with_something_changed(tasks, tmp_path):
    path = tmp_path / "design.yaml"
    Design((("lora",), ("bias", "adapter")), "decreasing", "increasing", (2,)).save(path)
    model = tasks["bert"].load_model()
    plan = choose("design", model, tasks["bert"], "10%", file=str(path))
    assert plan.notes["group_sizes"] == [4, 2]
    assert by_block(plan) == {4: {"bias", "adapter"}, 5: {"bias", "adapter"}}
    widths = {a.module: a.size for a in plan.additions}
    assert widths["bert.encoder.layer.4"] < widths["bert.encoder.layer.5"]
    changed = choose("design", model, tasks["bert"], "10%", file=str(path), tuned=[1], grouping="increasing")
    assert by_block(changed) == {0: {"lora"}, 1: {"lora"}}
    plan.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan") == plan


def test_no_settings_is_s4(tasks):
    model = tasks["bert"].load_model()
    plans = [choose(name, model, tasks["bert"], "20%") for name in ("design", "s4")]
    assert plans[0].additions == plans[1].additions
    assert plans[0].selections == plans[1].selections


def test_all_four_in_every_block_attach_on_t5(tasks):
    task = tasks["t5"]
    model = task.load_model()
    plan = choose(
        "design", model, task, "40%", strategies=[["adapter", "prefix", "bias", "lora"]], grouping="uniform"
    )
    assert by_block(plan) == {block: {"adapter", "prefix", "bias", "lora"} for block in range(4)}
    before = [p.detach().clone() for p in model.parameters()]
    attach(model, plan)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.trained
    detach(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "budget", "settings", "said"),
    [
        ("s4", "100", {}, r"in 6 tuned blocks takes [\d,]+ weights, the budget is 100; raise the budget"),
        ("design", None, {}, "needs a budget"),
        ("design", "5%", {"settings": {"lora": {"targets": "most"}}}, "group 1: lora in block 0: targets"),
        ("design", "5%", {"settings": {"adapter": {"afetr": "x"}}}, "group 1: adapter in block 0: .*afetr"),
        ("design", "5%", {"settings": {"lora": {"scale": 0}}}, "scale 0"),
    ],
)
def test_refusals_in_words(tasks, method, budget, settings, said):
    with pytest.raises(PareError, match=said):
        choose(method, tasks["bert"].load_model(), tasks["bert"], budget, **settings)


def test_a_block_that_cannot_carry_its_strategy_is_named(tasks):
    model = tasks["bert"].load_model()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(PareError, match=r"group 2: prefix in block 1: block 1 .* cannot carry a prefix"):
        choose("s4", model, tasks["bert"], "20%")


def test_bad_designs_are_told_before_anything_is_loaded():
    with pytest.raises(PareError, match="no strategy 'lara'"):
        make_method("design", {"strategies": [["lara"]]})
    assert {"design", "s4", "adapter", "prefix", "bias"} <= set(METHODS)
