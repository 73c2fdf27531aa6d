import pytest
import torch

from paretune import cli, ranks
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows


def test_the_device_is_this_process_s_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert ranks.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ranks.device() == torch.device("cuda", 3)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert ranks.device() == torch.device("cpu")


def test_a_model_is_loaded_there_with_the_same_weights(tmp_path, monkeypatch):
    task = Task.from_rows(tiny_rows("single", 20), model=tiny_model("bert", tmp_path / "bert"))
    sent = []
    monkeypatch.setattr("paretune.task.task.own_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(
        "transformers.BertForSequenceClassification.to", lambda model, to: sent.append(to) or model
    )
    task.load_model()
    task.load_model(device="meta")
    assert sent == [torch.device("cpu"), "meta"]


def test_too_little_memory_of_a_gpu_is_an_error_with_a_way_out(monkeypatch, capsys):
    def run(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setitem(cli.COMMANDS, "methods", run)
    assert cli.main(["methods"]) == cli.FAILED
    said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert "smaller --batch-size" in said
    monkeypatch.setitem(cli.COMMANDS, "methods", lambda options: [][1])
    with pytest.raises(IndexError):
        cli.main(["methods"])
