"""Small models and deltas for tests."""

from typing import Any

import numpy as np
import torch
from torch import nn

from paretune.anatomy import base_digest
from paretune.delta import Delta, Values
from paretune.plan import Addition, Base, Selection

HEAD = ("head.weight", "head.bias")


class Net(nn.Module):
    """An embedding tied to the output, a scalar, a 4-d weight, and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(13, 6)
            self.layer = nn.Linear(6, 9)
            self.convolution = nn.Conv2d(2, 3, (2, 2))
            self.scale = nn.Parameter(torch.randn(()))
            self.output = nn.Linear(6, 13)
            self.output.weight = self.embedding.weight
            self.head = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids) * self.scale)


def base_of(model: nn.Module, head: tuple[str, ...] = HEAD, name: str = "some/net") -> Base:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Base(name, base_digest(model, head), dtype)


def choose(shape: tuple[int, ...], granularity: str, share: float, rng: np.random.Generator) -> Any:
    """Random indices of a granularity."""
    if granularity == "all":
        return None
    bound = Selection("values", shape, granularity, np.empty(0, dtype=np.int64)).bound  # type: ignore[arg-type]
    return np.sort(rng.choice(bound, max(1, int(bound * share)), replace=False))


def random_values(
    shape: tuple[int, ...], granularity: str, share: float, rng: np.random.Generator, dtype: torch.dtype
) -> Values:
    indices = choose(shape, granularity, share, rng)
    count = Selection("values", shape, granularity, indices).count  # type: ignore[arg-type]
    return Values(shape, granularity, indices, torch.from_numpy(rng.standard_normal(count)).to(dtype))  # type: ignore[arg-type]


def net_delta(model: nn.Module, seed: int, dtype: torch.dtype | None = None, head: bool = True) -> Delta:
    """A delta for `Net` that mixes every granularity, chosen by the seed."""
    rng = np.random.default_rng(seed)
    names = dict(model.named_parameters())
    tensors = {}
    for name, parameter in names.items():
        if name in HEAD:
            continue
        kinds = ["all", "entries", "entries", "rows", "columns"] if parameter.ndim else ["all", "entries"]
        kinds += ["blocks"] if parameter.ndim == 2 else []
        tensors[name] = random_values(
            tuple(parameter.shape),
            str(rng.choice(kinds)),
            float(rng.uniform(0.1, 0.9)),
            rng,
            dtype or parameter.dtype,
        )
    if head:
        for name in HEAD:
            shape = tuple(names[name].shape)
            tensors[name] = random_values(shape, "all", 1.0, rng, dtype or names[name].dtype)
    return Delta(
        base=base_of(model, HEAD if head else ()),
        plan_digest=f"{seed:064x}",
        head=HEAD if head else (),
        task={"kind": "classification", "labels": ["no", "yes", "maybe"]},
        tensors=tensors,
        info={"method": "random", "seed": seed},
    )


def file_delta() -> Delta:
    """A small delta with something of everything; for files only, no model has its modules."""
    rng = np.random.default_rng(0)
    return Delta(
        base=Base("some/model", "ab" * 32, "float32"),
        plan_digest="cd" * 32,
        head=("classifier.bias",),
        task={"kind": "classification", "labels": ["no", "yes"], "max_length": 128},
        tensors={
            "classifier.bias": random_values((2,), "all", 1.0, rng, torch.float32),
            "layer.0.weight": random_values((8, 5), "entries", 0.3, rng, torch.bfloat16),
            "layer.1.weight": random_values((8, 5), "rows", 0.3, rng, torch.float32),
            "layer.2.weight": random_values((8, 5), "columns", 0.5, rng, torch.float16),
            "scale": random_values((), "entries", 1.0, rng, torch.float64),
        },
        additions=(Addition("lora", "layer.3", 2, 26, {"alpha": 4.0, "dropout": 0.0}),),
        added={
            "lora:layer.3:lora_A.weight": torch.from_numpy(rng.standard_normal((2, 5))).float(),
            "lora:layer.3:lora_B.weight": torch.from_numpy(rng.standard_normal((8, 2))).float(),
        },
        info={"method": "fish", "seed": 3, "scores": {"f1": 0.875}},
    )


def shapes_delta() -> Delta:
    """A delta with a matrix of 20 x 34 for each granularity that has indices."""
    shape, places = (20, 34), np.array([1, 5])
    counts = {"entries": 2, "rows": 2 * 34, "columns": 2 * 20, "blocks": 16 * 16 + 4 * 2}
    tensors = {
        kind: Values(shape, kind, places, torch.arange(count).float())  # type: ignore[arg-type]
        for kind, count in counts.items()
    }
    return Delta(base=Base("some/model", "ab" * 32, "float32"), plan_digest="ef" * 32, tensors=tensors)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def expected(base: dict[str, torch.Tensor], deltas: list[Delta]) -> dict[str, torch.Tensor]:
    """What a model's state should be: the base, then each delta in order, by plain assignment."""
    state = {name: tensor.clone() for name, tensor in base.items()}
    for delta in deltas:
        for name, values in delta.tensors.items():
            flat = state[name].reshape(-1)
            places = torch.from_numpy(values.selection(name).flat())
            flat[places] = values.values.reshape(-1).to(flat.dtype)
            state[name] = flat.reshape(state[name].shape)
    if "output.weight" in state:
        state["output.weight"] = state["embedding.weight"]
    return state
