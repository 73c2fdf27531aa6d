import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretune.delta import Delta, Values, format
from paretune.plan import Base
from tests.delta.examples import Net, file_delta, net_delta


def test_the_parts_add_up_to_the_file():
    delta = file_delta()
    summary = json.loads(json.dumps(delta.inspect()))
    total = summary["total"]
    assert total["bytes"] == len(format.encode(delta))
    assert total["weights"] == delta.count == sum(part["weights"] for part in summary["parts"].values())
    assert total["bytes_per_weight"] == pytest.approx(total["bytes"] / delta.count)
    assert set(summary["parts"]) == {"selected", "head", "added lora"}
    assert summary["parts"]["head"] == {"tensors": 1, "weights": 2, "index_bytes": 0, "value_bytes": 8}
    assert summary["parts"]["added lora"]["value_bytes"] == 26 * 4
    stored = sum(part["index_bytes"] + part["value_bytes"] for part in summary["parts"].values())
    assert 0 < total["bytes"] - stored < 1200
    assert [entry["name"] for entry in summary["tensors"]] == [*delta.tensors, *delta.added]


def test_the_page():
    page = str(file_delta())
    for word in (
        "some/model",
        "float32",
        "abababababab",
        "method fish",
        "f1 0.875",
        "selected",
        "added lora",
    ):
        assert word in page
    assert "layer.0.weight                                entries bf16          12    30.00%" in page
    assert "  task  kind classification, labels no/yes, max_length 128" in page


def test_it_fits_80_columns_whatever_is_in_it():
    long = "a.very.long.name.of.some.module." * 4
    rng = np.random.default_rng(0)
    delta = Delta(
        base=Base("some/" + "long" * 40, "ab" * 32, "bfloat16"),
        plan_digest="cd" * 32,
        task={"labels": [f"label {n}" for n in range(50)], "text": "line\nbreak\x1b[31m"},
        tensors={
            f"{long}{n}": Values(
                (10**6, 10**6), "entries", np.arange(50 + n), torch.from_numpy(rng.random(50 + n))
            )
            for n in range(20)
        },
        info={"seed": 1, "nested": {"a": [0.123456789]}},
    )
    page = str(delta)
    assert max(len(line) for line in page.splitlines()) <= 80
    assert page.isascii() and "\x1b" not in page
    assert "... and 8 more" in page and "nested (a 0.1235)" in page
    assert "label 0/label 1/" in page and "label 49" not in page  # three lines of it
    assert "name.of.some.module.19 " in page
    assert max(len(line) for line in str(net_delta(Net(), 0)).splitlines()) <= 80


def test_an_empty_delta():
    delta = Delta(Base("m", "d", "float32"), "p")
    assert delta.inspect()["total"]["bytes_per_weight"] is None
    assert "whole file" in str(delta)
    zero = Values((0, 3), "all", None, torch.zeros(0, 3))
    assert "zero" in str(replace(delta, tensors={"zero": zero}))
