import pytest

from paretune.errors import PareError
from paretune.search.field import Candidate, read_method
from paretune.search.front_table import NAME, _fitting


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
@pytest.mark.parametrize("method", ["fish", "ird", "gradient", "random"])
def test_a_granularity_is_a_setting_of_a_candidate(method, kind):
    name, settings = read_method(f"{method}:granularity={kind}")
    assert (name, settings) == (method, {"granularity": kind})
    candidate = Candidate(name, settings, "0.5%", "0.5%", 0.005)
    assert candidate.name == f"{method} {kind} 0.5%"
    assert candidate.rates


def test_unknown_granularities_are_refused():
    with pytest.raises(PareError, match="granularity='tiles' is none of entries, rows, columns, blocks"):
        read_method("fish:granularity=tiles")
    with pytest.raises(PareError, match="lora has no setting 'granularity'"):
        read_method("lora:granularity=rows")


def test_a_long_name_keeps_its_budget_in_the_table():
    names = [
        f"random {kind} {budget}" for kind in ("rows", "columns", "blocks") for budget in ("0.1%", "0.5%")
    ]
    shown = [_fitting(name) for name in names]
    assert len(set(shown)) == len(names)
    assert all(len(each) < NAME for each in shown)
    assert _fitting("random columns 0.5%") == "random co.. 0.5%"
    assert len(_fitting("mixture " + "x" * 40)) < NAME


def test_blocks_of_the_model_and_blocks_of_weights_have_two_names():
    fields = [read_method(f"fish:{setting}=blocks") for setting in ("within", "granularity")]
    names = [Candidate(name, settings, "1%", "1%", 0.01).name for name, settings in fields]
    assert names == ["fish in blocks 1%", "fish blocks 1%"]
