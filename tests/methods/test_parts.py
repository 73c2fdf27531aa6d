import numpy as np
import pytest
import torch

from paretune.evidence import top_k
from paretune.methods.parts import deal


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_entries_are_dealt_out_in_the_order_of_their_scores(parts):
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(4, 5, generator=generator), "b": torch.rand(30, generator=generator)}
    chosen = top_k(scores, 23)
    dealt = deal(chosen, scores, parts)
    every = sorted(
        ((float(scores[name].reshape(-1)[i]), name, i) for name, at in chosen.items() for i in at),
        reverse=True,
    )
    for number, part in enumerate(dealt):
        found = {(name, i) for name, at in part.items() for i in at}
        assert found == {(name, i) for _, name, i in every[number::parts]}
        assert all((np.diff(at) > 0).all() for at in part.values())


def test_equal_scores_are_dealt_out_too():
    dealt = deal({"a": np.array([1, 4, 6, 7])}, {"a": torch.ones(9)}, 2)
    assert [part["a"].tolist() for part in dealt] == [[1, 6], [4, 7]]


def test_nothing_chosen_is_nothing_dealt():
    assert deal({}, {}, 3) == [{}, {}, {}]
