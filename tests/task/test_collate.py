import pickle

import torch

from paretune.task.collate import Collator

ROWS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 1, "length": 3},
    {"input_ids": [8], "attention_mask": [1], "labels": 0, "length": 1},
]


def test_pads_on_the_right_and_drops_what_no_model_takes():
    batch = Collator(9)(ROWS)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(values.dtype == torch.int64 for values in batch.values())


def test_labels_of_each_sort():
    numbers = Collator(0)([{**row, "labels": row["labels"] / 2} for row in ROWS])["labels"]
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == [0.5, 0.0]
    tokens = Collator(0)([{**ROWS[0], "labels": [1, 2]}, {**ROWS[1], "labels": [3, 4, 5, 6]}])["labels"]
    assert tokens.tolist() == [[1, 2, -100, -100], [3, 4, 5, 6]]
    assert "labels" not in Collator(0)([{"input_ids": [1], "attention_mask": [1]}])


def test_can_go_to_another_process():
    assert pickle.loads(pickle.dumps(Collator(9)))(ROWS)["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]  # noqa: S301
