import pytest

from paretune.errors import PareError
from paretune.strategies import attach_additions
from paretune.strategies.paths import named_slots, plain, plain_view, slot
from tests.strategies.models import assert_same, build, mixture, snapshot


def test_paths_of_the_plain_model_stay_valid_while_modules_are_attached():
    model = build("gpt2")
    before = dict(model.named_modules(remove_duplicate=False))
    del before[""]
    attach_additions(model, mixture(model))

    assert {path: plain(module) for path, module in named_slots(model)} == before
    assert type(slot(model, "transformer.h.0.attn.c_attn")).__module__.startswith("peft")


def test_plain_view_shows_the_plain_tree_and_gives_the_attached_one_back():
    model = build("t5")
    names = [name for name, _ in model.named_parameters()]
    attach_additions(model, mixture(model))
    attached = snapshot(model)

    with plain_view(model):
        assert [name for name, _ in model.named_parameters()] == names
    assert_same(attached, snapshot(model))


def test_plain_view_gives_the_attached_tree_back_after_an_error():
    model = build("bert")
    attach_additions(model, mixture(model))
    attached = snapshot(model)
    with pytest.raises(RuntimeError), plain_view(model):
        raise RuntimeError
    assert_same(attached, snapshot(model))


@pytest.mark.parametrize("path", ["bert.encoder.layer.0.attention.self.quary", "", "bert.encoder.layer.7"])
def test_unknown_path_is_refused(path):
    with pytest.raises(PareError, match="has no module"):
        slot(build("bert"), path)


def test_unknown_path_names_the_nearest():
    with pytest.raises(PareError, match=r"did you mean .*self\.query"):
        slot(build("bert"), "bert.encoder.layer.0.attention.self.quary")
