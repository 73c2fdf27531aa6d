import pytest
import torch

from paretune import cli, ranks
from paretune.errors import PareError
from paretune.search.tune import tune
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


@pytest.mark.parametrize(("named", "seen"), [(None, ["0", "1"]), ("3,GPU-7", ["3", "GPU-7"])])
def test_the_gpus_are_named_as_cuda_names_them(named, seen, monkeypatch):
    assert ranks.gpus() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if named:
        monkeypatch.setenv(ranks.VISIBLE, named)
    else:
        monkeypatch.delenv(ranks.VISIBLE, raising=False)
    assert ranks.gpus() == seen


@pytest.mark.parametrize("variable", ["FSDP", "DEEPSPEED"])
def test_weights_split_over_processes_are_refused_before_anything_is_loaded(variable, tmp_path, monkeypatch):
    task = Task.from_rows(tiny_rows("single", 20), tiny_rows("single", 9), model=tiny_model("bert", tmp_path))
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    monkeypatch.setattr(Task, "load_model", None)
    with pytest.raises(PareError, match=r"splits the weights over the processes.*torchrun"):
        tune(task, "fish", "5%", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
