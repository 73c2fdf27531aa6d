import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.task.files import Rows, from_mappings
from paretune.task.labels import (
    MANY,
    class_indices,
    class_name,
    class_names,
    guess_kind,
    positive_class,
    targets,
)


def column(*values) -> Rows:
    return from_mappings([{"label": value} for value in values], "data.jsonl")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "classification"),
        ([0, 1, 1], "classification"),
        ([True, False], "classification"),
        ([0.0, 1.0], "classification"),
        (["0", "1"], "classification"),
        ([5.0, 3.8], "regression"),
        (["5", "3.8"], "regression"),
        (list(range(MANY)), "classification"),
        (list(range(MANY + 1)), "regression"),
        ([1, "many"], "classification"),
    ],
)
def test_guess_kind(values, kind):
    assert guess_kind(column(*values), "label") == kind


def test_free_text_is_no_label():
    with pytest.raises(PareError, match=r"40 different values in 40 rows.*kind='classification'"):
        guess_kind(column(*(f"answer {number}" for number in range(40))), "label")


@pytest.mark.parametrize(
    ("value", "name"),
    [(3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "true"), (" yes ", "yes"), ("3.0", "3.0")],
)
def test_class_name(value, name):
    assert class_name(value) == name


def test_classes_are_sorted_numbers_by_value():
    assert class_names(column("b", "a", "b"), "label") == ("a", "b")
    assert class_names(column(10, 9, -1), "label") == ("-1", "9", "10")
    assert class_names(column("10", "9", "x"), "label") == ("10", "9", "x")


@given(st.lists(st.integers(-30, 30) | st.text("abc", min_size=1, max_size=2), min_size=2))
def test_indices_name_the_classes(values):
    rows = column(*values)
    if len({class_name(value) for value in values}) == 1:
        with pytest.raises(PareError, match="in every row"):
            class_names(rows, "label")
        return
    classes = class_names(rows, "label")
    assert [classes[index] for index in class_indices(rows, "label", classes)] == [
        class_name(value) for value in values
    ]


def test_a_label_that_train_does_not_have_is_named_with_its_line():
    with pytest.raises(PareError, match=r"data.jsonl, row 2: label 'equivalant' .*did you mean 'equivalent'"):
        class_indices(column("other", "equivalant"), "label", ("equivalent", "other"))


@pytest.mark.parametrize("value", [None, "", float("nan"), "nan"])
def test_a_missing_label_is_named_with_its_row(value):
    with pytest.raises(PareError, match="row 2: no label in field 'label'"):
        class_names(column("a", value, "b"), "label")
    with pytest.raises(PareError, match="row 2: no label in field 'label'"):
        targets(column(1, value, 2), "label", vary=True)


def test_a_list_is_no_label():
    with pytest.raises(PareError, match="row 1: field 'label' holds a list"):
        class_names(column(["a"], "b"), "label")


def test_targets():
    assert targets(column(1, "2.5", 3.0), "label", vary=True) == [1.0, 2.5, 3.0]
    assert targets(column(1, 1), "label", vary=False) == [1.0, 1.0]
    with pytest.raises(PareError, match="in every row"):
        targets(column(1, 1), "label", vary=True)
    for bad in ("high", True, float("inf"), "1e999"):
        with pytest.raises(PareError, match=r"row 2.*not a finite number"):
            targets(column(1, bad), "label", vary=True)


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("equivalent", "not_equivalent"), "equivalent"),
        (("acceptable", "unacceptable"), "acceptable"),
        (("entailment", "not_entailment"), "entailment"),
        (("hate", "non-hate"), "hate"),
        (("0", "1"), "1"),
        (("no", "yes"), "yes"),
        (("false", "true"), "true"),
        (("negative", "positive"), "positive"),
        (("bad", "good"), "good"),
        (("a", "b", "c"), None),
    ],
)
def test_positive_class(classes, positive):
    assert positive_class(classes, None) == positive


def test_the_positive_class_that_was_asked_for():
    assert positive_class(("a", "b", "c"), "b") == "b"
    with pytest.raises(PareError, match=r"positive='good '.*did you mean 'good'"):
        positive_class(("bad", "good"), "good ")
