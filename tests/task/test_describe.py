from paretune.task import Task
from tests.tiny import tiny_rows


def test_classes(checkpoint):
    task = Task.from_rows(
        [*tiny_rows("single", 19), {"text": "the cat " * 30, "label": "good"}],
        tiny_rows("single", 4),
        model=checkpoint("bert"),
        max_length=32,
    )
    lines = str(task).splitlines()
    assert lines[0] == f"classification on {checkpoint('bert')}"
    assert lines[1:6] == [
        "text        text",
        "label       label: bad, good",
        "metric      accuracy (higher is better)",
        "f1          of 'good'",
        "rows        train 18, heldout 2, validation 4",
    ]
    where = "train" if task.truncated["train"] else "heldout"
    assert lines[6] == f"max_length  32 tokens; rows cut: 1 of {where}"
    assert len(lines) == 7


def test_language(checkpoint):
    task = Task.from_rows(
        [*tiny_rows("text", 10), {"text": ""}], model=checkpoint("gpt2"), max_length=60, heldout=0
    )
    assert str(task).splitlines()[1:] == [
        "text        text",
        "metric      perplexity (lower is better)",
        "rows        train 10",
        "max_length  60 tokens; rows cut: none",
        "left out    1 of train: no target token",
        "note        loss on all tokens",
    ]


def test_many_classes(checkpoint):
    rows = [{"text": "the cat", "label": number % 3} for number in range(30)]
    text = str(Task.from_rows(rows, model=checkpoint("bert")))
    assert "f1          mean over the classes" in text
