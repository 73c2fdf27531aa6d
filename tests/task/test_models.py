import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, BertConfig, GPT2Config, T5Config
from transformers.utils import logging

from paretune.errors import PareError
from paretune.task import models
from paretune.task.models import (
    family,
    has_token_types,
    load_config,
    load_model_from_spec,
    load_tokenizer,
    max_positions,
)
from tests.tiny import DECODERS, ENCODERS, KINDS, POSITIONS, tiny_model, tiny_tokenizer

TEXT_MODELS = [kind for kind in KINDS if kind != "vit"]


def spec(kind="classification", labels=("a", "b", "c"), pad=0):
    return {"kind": kind, "labels": list(labels), "pad_token_id": pad, "revision": None}


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_the_head_is_what_the_checkpoint_does_not_hold(checkpoint, kind):
    held = load_file(checkpoint(kind) / "model.safetensors")
    model = load_model_from_spec(checkpoint(kind), spec())
    prefix = f"{model.base_model_prefix}."
    names = {name for name, _ in model.named_parameters()}
    expected = {name for name in names if name not in held and name.removeprefix(prefix) not in held}
    assert expected
    assert set(model.paretune_head) == expected
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.config.problem_type == "single_label_classification"
    assert model.paretune_task == spec()
    assert not model.training


@pytest.mark.parametrize(("kind", "task"), [*((kind, "causal-lm") for kind in DECODERS), ("t5", "seq2seq")])
def test_a_language_model_has_no_head_of_its_own(checkpoint, kind, task):
    # Qwen and T5 are tied: the loader finds one of the names missing, but not the tensor.
    assert load_model_from_spec(checkpoint(kind), spec(task, ())).paretune_head == ()


def test_a_tied_tensor_is_new_only_if_none_of_its_names_was_loaded():
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    assert models._new_parameters(model, {"second.weight"}) == []
    assert models._new_parameters(model, {"first.weight", "second.bias"}) == ["second.bias"]
    assert models._new_parameters(model, {"first.weight", "second.weight"}) == ["first.weight"]


def test_a_language_head_that_is_missing_is_one(tmp_path, checkpoint):
    folder = tmp_path / "llama"
    shutil.copytree(checkpoint("llama"), folder)
    held = load_file(folder / "model.safetensors")
    save_file(
        {name: values for name, values in held.items() if name != "lm_head.weight"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert load_model_from_spec(folder, spec("causal-lm", ())).paretune_head == ("lm_head.weight",)


def test_the_seed_makes_the_head_and_leaves_the_caller_alone(checkpoint):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load_model_from_spec(checkpoint("roberta"), spec(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    again = load_model_from_spec(checkpoint("roberta"), spec(), seed=1)
    other = load_model_from_spec(checkpoint("roberta"), spec(), seed=2)
    for name, values in first.named_parameters():
        assert torch.equal(values, again.get_parameter(name))
        # The head's biases start at zero under every seed.
        differs = name in first.paretune_head and name.endswith("weight")
        assert torch.equal(values, other.get_parameter(name)) != differs


def test_settings_reach_the_model(checkpoint):
    model = load_model_from_spec(
        checkpoint("bert"), spec("regression", ()), dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_end_token_pads_and_its_embedding_still_learns(checkpoint, kind):
    tokenizer = load_tokenizer(str(checkpoint(kind)))
    assert tokenizer.pad_token == tokenizer.eos_token
    model = load_model_from_spec(checkpoint(kind), spec(pad=tokenizer.pad_token_id))
    assert model.config.pad_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().padding_idx is None


def test_a_head_for_other_classes_is_made_anew(checkpoint, tmp_path):
    load_model_from_spec(checkpoint("bert"), spec()).save_pretrained(tmp_path / "three")
    same = load_model_from_spec(tmp_path / "three", spec())
    assert same.paretune_head == ()
    two = load_model_from_spec(tmp_path / "three", spec(labels=("a", "b")))
    assert two.paretune_head == ("classifier.weight", "classifier.bias")
    assert two.classifier.weight.shape[0] == 2


def test_a_body_of_another_shape_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(PareError, match=r"bert.encoder.layer.0.*another shape"):
        load_model_from_spec(folder, spec())


def test_loading_is_quiet_and_puts_the_loudness_back(checkpoint, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model_from_spec(checkpoint("bert"), spec())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_family_and_positions(checkpoint, kind):
    config = load_config(str(checkpoint(kind)))
    expected = "encoder" if kind in ENCODERS else "decoder" if kind in DECODERS else "encoder-decoder"
    assert family(config) == expected
    assert max_positions(config) == (None if kind == "t5" else POSITIONS)
    assert has_token_types(config) == (kind == "bert")


def test_positions_are_exactly_those_that_work(checkpoint):
    for kind in ("bert", "roberta", "distilbert", "gpt2"):
        limit = max_positions(load_config(str(checkpoint(kind))))
        pad = load_tokenizer(str(checkpoint(kind))).pad_token_id
        model = load_model_from_spec(checkpoint(kind), spec(pad=pad))
        model(torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 7))


def test_limits_that_are_none():
    assert max_positions(T5Config(n_positions=512)) is None
    assert max_positions(BertConfig(max_position_embeddings=-1)) is None
    assert max_positions(GPT2Config()) == 1024


def test_remote_code_counts_as_what_it_says(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint("bert"))
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert family(config) == "decoder"


def test_paths_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.bin").write_text("x")
    (tmp_path / "empty").mkdir()
    for model_id, words in {
        str(tmp_path / "file.bin"): "this is a file",
        str(tmp_path / "empty"): "holds no config.json",
        str(tmp_path / "nothing"): "no such folder",
        "./nothing": "no such folder",
        "empty/model": "no such folder",
        "a/b/c": "no such folder",
        "a b": "cannot be loaded",
    }.items():
        with pytest.raises(PareError, match=words) as caught:
            load_config(model_id)
        assert model_id in str(caught.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_quantised_weights_are_refused(method, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "quantised"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PareError, match=rf"quantised \({method}.*--precision bf16"):
        load_config(str(folder))


def test_a_hub_out_of_reach(monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to the Hub to load the files")

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", fail)
    with pytest.raises(PareError, match=r"org/name: .*Hub cannot be reached"):
        load_config("org/name")


def test_code_that_comes_with_a_model_is_asked_for(checkpoint, tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PareError, match="trust_remote_code=True"):
        load_config(str(tmp_path))


def test_damaged_checkpoints(checkpoint, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(checkpoint("bert"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PareError, match="model for classification cannot be loaded"):
        load_model_from_spec(folder, spec())
    (folder / "config.json").write_text("{")
    with pytest.raises(PareError, match="configuration cannot be loaded"):
        load_config(str(folder))


def test_a_model_that_cannot_do_the_task(checkpoint):
    with pytest.raises(PareError, match="model for classification cannot be loaded"):
        load_model_from_spec(checkpoint("vit"), spec())
    with pytest.raises(PareError, match="no kind of task 'x'"):
        load_model_from_spec(checkpoint("bert"), spec("x"))


def test_tokenizers_that_are_not_there(checkpoint, tmp_path):
    with pytest.raises(PareError, match="tokenizer"):
        load_tokenizer(str(checkpoint("vit")))
    tiny_model("gpt2", tmp_path)
    tiny_tokenizer(tmp_path, "gpt2")
    bare = AutoTokenizer.from_pretrained(tmp_path)
    bare.eos_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(PareError, match="neither a padding nor an end token"):
        load_tokenizer(str(tmp_path))
