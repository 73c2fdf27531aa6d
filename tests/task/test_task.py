import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from paretune.errors import PareError
from paretune.task import Task, load_model_from_spec
from tests.tiny import tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(checkpoint):
    return Task.from_rows(
        tiny_rows("single", 40), tiny_rows("single", 21, seed=1), model=checkpoint("bert"), heldout=0.2
    )


@pytest.fixture(scope="module")
def model(task):
    return task.load_model()


def test_from_files_leaves_no_file_behind(checkpoint, tmp_path, monkeypatch):
    train = write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 30))
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    found = Task.from_files(train, str(train), model=checkpoint("bert"))
    assert found.train.cache_files == []
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) in ([train, folder], [folder, train])
    same = Task.from_rows(tiny_rows("pair", 30), tiny_rows("pair", 30), model=checkpoint("bert"))
    assert found.fingerprint == same.fingerprint


def test_every_file_format_gives_the_same_task(checkpoint, tmp_path):
    rows = [{**row, "label": number % 2} for number, row in enumerate(tiny_rows("single", 20))]
    data = datasets.Dataset.from_list(rows)
    data.to_csv(tmp_path / "a.csv", index=False)
    data.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    data.to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    tasks = [
        Task.from_files(tmp_path / f"a.{suffix}", model=checkpoint("bert"))
        for suffix in ("csv", "tsv", "parquet", "jsonl", "json")
    ]
    tasks.append(Task.from_rows(data, model=checkpoint("bert")))
    for other in tasks:
        assert other.labels == ("0", "1")
        assert other.train[:] == tasks[0].train[:]
        assert other.heldout[:] == tasks[0].heldout[:]


def test_a_name_on_the_hub_brings_its_validation_split(checkpoint, monkeypatch):
    rows = datasets.Dataset.from_list(tiny_rows("single", 20))
    found = {"a/b": datasets.DatasetDict({"train": rows, "validation": rows.select(range(5))})}
    found["a/c"] = datasets.DatasetDict({"train": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config=None: found[path])
    assert len(Task.from_files("a/b", model=checkpoint("bert")).validation) == 5
    assert Task.from_files("a/c", model=checkpoint("bert")).validation is None
    assert len(Task.from_files("a/c", "a/b", model=checkpoint("bert")).validation) == 5


def test_columns_and_splits(task):
    assert set(task.train.column_names) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "labels",
        "length",
    }
    assert (len(task.train), len(task.heldout), len(task.validation)) == (32, 8, 21)
    assert task.labels == ("bad", "good")
    assert task.rows("heldout") is task.heldout
    assert task.rows(task.train) is task.train
    assert [len(row) for row in task.train["input_ids"]] == list(task.train["length"])


def test_what_is_not_there(task, checkpoint):
    with pytest.raises(PareError, match=r"no split 'test'; there are train, heldout, validation"):
        task.rows("test")
    bare = Task.from_rows(tiny_rows("single", 20), model=checkpoint("bert"), heldout=0)
    with pytest.raises(PareError, match="no validation rows; give a validation file"):
        bare.require_validation()
    with pytest.raises(PareError, match=r"no heldout rows; .*heldout="):
        bare.rows("heldout")
    with pytest.raises(PareError, match="no validation rows"):
        bare.score(bare.load_model())
    task.require_validation()


def test_the_same_seed_holds_out_the_same(checkpoint):
    def held(seed):
        return Task.from_rows(tiny_rows("single", 40), model=checkpoint("bert"), seed=seed).heldout[
            "input_ids"
        ][:]

    assert held(0) == held(0)
    assert held(0) != held(1)


def test_subsets_are_seeded_and_stratified(task):
    small = task.subset("train", 10, seed=3)
    assert len(small) == 10
    assert list(small["labels"]).count(0) == 5
    assert small[:] == task.subset("train", 10, seed=3)[:]
    assert small[:] != task.subset("train", 10, seed=4)[:]
    assert task.subset("train", 10**6) is task.train
    assert len(task.subset(small, 4)) == 4
    assert small.cache_files == []
    with pytest.raises(PareError, match="count=0"):
        task.subset("train", 0)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_batches_go_in_order(task, size):
    batches = list(task.batches("validation", size))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == list(task.validation["labels"])
    assert {len(batch["labels"]) for batch in batches[:-1]} <= {size}
    assert set(batches[0]) == {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_batches_of_some_rows(task):
    picked = np.array([7, 0, 7])
    (batch,) = task.batches("train", 8, indices=picked, device="cpu")
    for place, index in enumerate(picked.tolist()):
        ids = task.train[index]["input_ids"]
        assert batch["input_ids"][place, : len(ids)].tolist() == ids
    assert list(task.batches("train", 8, indices=[])) == []
    with pytest.raises(PareError, match="batch_size=0"):
        task.batches("train", 0)


@settings(max_examples=10)
@given(size=st.integers(1, 30))
def test_scores_do_not_depend_on_the_batches(task, model, size):
    whole, found = task.score(model, batch_size=64), task.score(model, batch_size=size)
    assert set(found) == {"accuracy", "f1", "matthews", "loss"}
    assert found == pytest.approx(whole, rel=1e-5)


def test_scores_against_a_plain_loop(task, model):
    losses, hits = [], []
    for index in range(len(task.validation)):
        batch = task.collate([task.validation[index]])
        with torch.no_grad():
            found = model(**batch)
        losses.append(float(found.loss))
        hits.append(int(found.logits.argmax()) == int(batch["labels"]))
    scores = task.score(model)
    assert scores["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(np.mean(hits))
    assert task.score(model, task.validation) == scores


def test_scoring_leaves_the_model_as_it_was(task, model):
    model.train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    first = task.score(model, "heldout")
    assert task.score(model, "heldout") == first  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_perplexity_is_that_of_all_target_tokens(checkpoint):
    found = Task.from_rows(
        tiny_rows("prompt", 12), tiny_rows("prompt", 9, seed=2), model=checkpoint("gpt2"), separator=" "
    )
    loaded = found.load_model()
    total = tokens = 0
    for row in found.validation:
        batch = found.collate([row])
        log = loaded(input_ids=batch["input_ids"]).logits.log_softmax(-1)[0]
        for place, label in enumerate(batch["labels"][0].tolist()):
            if label != -100:
                total -= float(log[place - 1, label].detach())
                tokens += 1
    scores = found.score(loaded, batch_size=4)
    assert scores["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert not found.higher_is_better


def test_not_finite_names_the_first_example(task):
    broken = task.load_model()
    token = task.validation[5]["input_ids"][3]
    with torch.no_grad():
        broken.bert.embeddings.word_embeddings.weight[token] = math.nan
    having = [index for index, ids in enumerate(task.validation["input_ids"]) if token in ids]
    with pytest.raises(PareError, match=rf"example {having[0]} is not finite \({len(having)} of 21"):
        task.score(broken, batch_size=4)


@pytest.mark.parametrize(
    ("model", "shape"),
    [("bert", "pair"), ("bert", "score"), ("gpt2", "single"), ("llama", "text"), ("t5", "prompt")],
)
def test_a_spec_rebuilds_the_model(checkpoint, model, shape):
    found = Task.from_rows(tiny_rows(shape, 20), model=checkpoint(model))
    spec = json.loads(json.dumps(found.spec()))
    first, again = found.load_model(seed=4), load_model_from_spec(checkpoint(model), spec, seed=4)
    assert type(first) is type(again)
    assert first.config.id2label == again.config.id2label
    assert first.config.pad_token_id == again.config.pad_token_id == found.tokenizer.pad_token_id
    # A delta brings the head along: where it began is the training data's affair.
    for name, values in first.state_dict().items():
        if name not in first.paretune_head:
            assert torch.equal(values, again.state_dict()[name])
    assert first.paretune_task == spec


def test_settings_are_kept(checkpoint):
    found = Task.from_rows(
        tiny_rows("single", 20), model=checkpoint("bert"), metric="f1", positive="bad", max_length=32
    )
    assert (found.metric, found.positive, found.max_length) == ("f1", "bad", 32)
    assert found.higher_is_better
    assert found.spec() == {
        "kind": "classification",
        "labels": ["bad", "good"],
        "text": ["text"],
        "label": "label",
        "metric": "f1",
        "positive": "bad",
        "max_length": 32,
        "separator": "",
        "pad_token_id": 0,
        "revision": None,
    }


@pytest.mark.parametrize(("model", "shape"), [("bert", "single"), ("bert", "score"), ("gpt2", "prompt")])
def test_transformers_trainer_takes_it_as_it_is(checkpoint, tmp_path, model, shape):
    found = Task.from_rows(tiny_rows(shape, 20), model=checkpoint(model))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        train_sampling_strategy="group_by_length",
    )
    trainer = Trainer(
        model=found.load_model(), args=arguments, train_dataset=found.train, data_collator=found.collate
    )
    assert math.isfinite(trainer.train().training_loss)


def test_learning_lowers_the_loss(task):
    learner = task.load_model()
    before = task.score(learner, "train")
    optimiser = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(15):
        for batch in task.batches("train", 16):
            optimiser.zero_grad()
            task.example_losses(learner, batch).mean().backward()
            optimiser.step()
    after = task.score(learner, "train")
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.9


def test_files_that_do_not_exist(checkpoint, tmp_path):
    with pytest.raises(PareError, match="no such file"):
        Task.from_files(tmp_path / "train.jsonl", model=checkpoint("bert"))
    train = write_jsonl(tmp_path / "train.jsonl", tiny_rows("single", 20))
    with pytest.raises(PareError, match="no such folder"):
        Task.from_files(train, model=Path("/no/such/model"))
