import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.methods.design import ORDER, Design
from paretune.methods.layout import ALLOCATIONS, GROUPINGS

subsets = st.lists(st.sampled_from(ORDER), min_size=1, max_size=4, unique=True)


@st.composite
def designs(draw):
    strategies = draw(st.lists(subsets, min_size=1, max_size=5))
    numbers = st.sampled_from(range(1, len(strategies) + 1))
    return Design(
        strategies=tuple(map(tuple, strategies)),
        grouping=draw(st.sampled_from(GROUPINGS)),
        allocation=draw(st.sampled_from(ALLOCATIONS)),
        tuned=tuple(draw(st.lists(numbers, min_size=1))),
        ratio=draw(st.sampled_from([1, 3.0, 2.5])),
        settings=draw(st.sampled_from([{}, {"lora": {"targets": "all"}, "adapter": {"after": "both"}}])),
    )


@given(design=designs())
def test_yaml_gives_the_design_back(design, tmp_path_factory):
    path = tmp_path_factory.mktemp("design") / "design.yaml"
    design.save(path)
    again = Design.load(path)
    assert again.document() == design.document()
    assert Design.from_document(design.document()).document() == design.document()


@given(designs(), st.integers(0, 30))
def test_tuned_blocks_belong_to_tuned_groups(design, blocks):
    tuned = design.tuned_blocks(blocks)
    assert set(tuned.values()) <= set(design.tuned)
    assert list(tuned) == sorted(tuned)
    if tuned:
        assert sum(design.shares(list(tuned)).values()) == 1
    if len(design.tuned) == design.groups:
        assert list(tuned) == list(range(blocks))


def test_strategies_stand_in_the_published_order():
    assert Design((("lora", "bias", "prefix", "adapter", "lora"),)).strategies == (ORDER,)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "no design; it needs the fields grouping, allocation"),
        ({"grouping": "spindle"}, "no strategies; give a list for each group"),
        ({"strategies": [["lora"]], "groping": "uniform"}, r"'groping' \(did you mean 'grouping'\?\)"),
        ({"strategies": [["lara"]]}, r"group 1: no strategy 'lara' \(did you mean 'lora'\?\)"),
        ({"strategies": [["lora"], []]}, "group 2 has no strategy; leave its number out of tuned"),
        ({"strategies": []}, "one group at least"),
        ({"strategies": "lora"}, "strategies must be a list, not 'lora'"),
        ({"strategies": ["lora"]}, "strategies of group 1 must be a list"),
        ({"strategies": [["lora"]], "tuned": [2]}, "tuned group 2 is not there; .* from 1 to 1"),
        ({"strategies": [["lora"]], "tuned": [True]}, "tuned group True"),
        ({"strategies": [["lora"]], "tuned": []}, "trains nothing"),
        ({"strategies": [["lora"]], "ratio": 0.5}, "ratio 0.5"),
        ({"strategies": [["lora"]], "ratio": "x"}, "ratio 'x'"),
        ({"strategies": [["lora"]], "allocation": "even"}, "no allocation 'even'"),
        ({"strategies": [["lora"]], "settings": {"lara": {}}}, "did you mean 'lora'"),
        ({"strategies": [["lora"]], "settings": ["lora"]}, "settings are given by strategy"),
    ],
)
def test_what_is_no_design_is_refused_in_words(document, said):
    with pytest.raises(PareError, match=said):
        Design.from_document(document)


def test_a_file_that_is_no_yaml_names_the_line(tmp_path):
    path = tmp_path / "design.yaml"
    path.write_text("grouping: spindle\nstrategies: [[lora]\n")
    with pytest.raises(PareError, match=r"design.yaml: is no YAML: .*line 3"):
        Design.load(path)
    with pytest.raises(PareError, match=r"absent.yaml: cannot be read"):
        Design.load(tmp_path / "absent.yaml")
    path.write_text("strategies: [[lara]]")
    with pytest.raises(PareError, match=r"design.yaml: group 1: no strategy"):
        Design.load(path)
