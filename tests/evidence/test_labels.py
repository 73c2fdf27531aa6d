"""Sampled labels: where they go, and how often each comes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretune.evidence.labels import losses_for, with_noise

VOCABULARY = 9


class Sure(nn.Module):
    """A language model that is certain of what comes at each place: the place's number."""

    def forward(self, input_ids: Tensor, **rest: Any) -> Any:
        width = rest.get("decoder_input_ids", input_ids).shape[1]
        said = 50.0 * nn.functional.one_hot(torch.arange(width), VOCABULARY)
        return SimpleNamespace(logits=said.expand(len(input_ids), -1, -1))

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return labels.clamp(min=0)


def task(kind: str) -> Any:
    return SimpleNamespace(kind=kind)


def batch(labels: list[list[int]]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor(labels).clamp(min=0), "labels": torch.tensor(labels)}


@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq"])
def test_drawn_tokens_stand_where_the_targets_stood(kind: str) -> None:
    """Only a token drawn from the place that predicts it has no loss under a model that is certain."""
    given = batch([[-100, -100, 7, 7, 7], [-100, 7, 7, -100, -100]])
    drawn = with_noise(task(kind), "sampled", given, np.array([3, 8]), seed=0)
    before = given["labels"].clone()
    values = losses_for(task(kind), "sampled")(Sure(), drawn)
    assert float(values.max()) < 1e-6
    assert given["labels"].equal(before)


@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq"])
def test_padding_changes_no_drawn_token(kind: str) -> None:
    class Undecided(Sure):
        def forward(self, input_ids: Tensor, **rest: Any) -> Any:
            shape = super().forward(input_ids, **rest).logits.shape
            logits = torch.linspace(0, 2, VOCABULARY).expand(shape)
            return SimpleNamespace(logits=logits)

    short, long = batch([[-100, 7, 7, 7]]), batch([[-100, 7, 7, 7, -100, -100]])
    loss = losses_for(task(kind), "sampled")
    one, other = (
        float(loss(Undecided(), with_noise(task(kind), "sampled", given, np.array([4]), seed=2)))
        for given in (short, long)
    )
    assert one == pytest.approx(other, abs=1e-7)


def test_classes_come_as_often_as_the_model_says() -> None:
    class Fixed(nn.Module):
        def forward(self, input_ids: Tensor) -> Any:
            return SimpleNamespace(logits=torch.tensor([0.1, 0.6, 0.3]).log().expand(len(input_ids), 3))

    count = 4000
    given = {"input_ids": torch.zeros(count, 1), "labels": torch.zeros(count, dtype=torch.int64)}
    drawn = with_noise(task("classification"), "sampled", given, np.arange(count), seed=0)
    values = losses_for(task("classification"), "sampled")(Fixed(), drawn)
    for share in (0.1, 0.6, 0.3):
        found = float((values + torch.tensor(share).log()).abs().lt(1e-5).float().mean())
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_labels_from_the_data_need_no_noise() -> None:
    given = batch([[1, 2]])
    assert with_noise(task("causal-lm"), "data", given, np.array([0]), seed=0) == given
