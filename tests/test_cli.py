import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from paretune.cli import BAD_INPUT, INTERRUPTED, OK, main
from paretune.cli_front import task_words
from paretune.delta import Delta
from paretune.methods import METHODS
from paretune.options import build_parser
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_model("bert", folder / "bert")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 100))
    write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 40, seed=1))
    return folder


def task_options(data, validation=True):
    options = ["--model", str(data / "bert"), "--train", str(data / "train.jsonl"), "--max-length", "32"]
    return options + (["--validation", str(data / "validation.jsonl")] if validation else [])


def tune(data, out, *more):
    short = ["--steps", "8", "--batch-size", "8", "--lr", "1e-2", "--quiet", "--out", str(out)]
    return main(["tune", *task_options(data), *short, *more])


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert tune(data, out, "--method", "lora", "--budget", "5%") == OK
    return out


def test_choose_prints_the_plan_and_keeps_it(data, tmp_path, capsys):
    arguments = [*task_options(data, validation=False), "--budget", "3%", "--set", "samples=32"]
    assert main(["choose", *arguments, "--method", "fish", "--out", str(tmp_path / "plan")]) == OK
    printed = capsys.readouterr().out
    assert "(asked: 3%)" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert (tmp_path / "plan/plan.json").exists()
    assert main(["choose", *arguments, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["method"] == "fish"


def test_adapeft_has_flags_of_its_own(data, tmp_path, capsys):
    arguments = [*task_options(data, validation=False), "--budget", "10%", "--method", "adapeft"]
    arguments += ["--set", "samples=16", "items=tensor", "--json"]
    assert main(["choose", *arguments, "--horizon", "40%", "--probe-depth", "50%"]) == OK
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["horizon"], settings["probe_depth"]) == (0.4, 0.5)
    model = str(task_options(data)[1])
    assert main(["choose", *arguments, "--probe-model", model]) == OK
    assert json.loads(capsys.readouterr().out)["settings"]["probe_model"] == model


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks"])
def test_granularity_has_a_flag_of_its_own(data, tmp_path, capsys, kind):
    arguments = [*task_options(data, validation=False), "--budget", "5%", "--method", "random"]
    arguments += ["--granularity", kind]
    assert main(["choose", *arguments]) == OK
    assert f" {kind} of " in capsys.readouterr().out
    assert tune(data, tmp_path / "run", *arguments[-6:]) == OK
    kinds = {values.granularity for values in Delta.load(tmp_path / "run/delta.safetensors").tensors.values()}
    assert kinds == {kind, "all"}  # the head is whole


def test_tune_with_a_plan_that_was_chosen_before(data, tmp_path, capsys):
    arguments = [*task_options(data, validation=False), "--budget", "3%", "--method", "random"]
    main(["choose", *arguments, "--out", str(tmp_path / "plan")])
    assert tune(data, tmp_path / "run", "--plan", str(tmp_path / "plan"), "--json") == OK
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["method"] == "random"
    assert result["trained"] == Delta.load(tmp_path / "run/delta.safetensors").count - result["head"]


@pytest.mark.parametrize(
    "typed",
    [
        ["--budget", "1%"],
        ["--head", "outside"],
        ["--exclude", "*layer.0*"],
        ["--set", "power=0"],
        ["--granularity", "rows"],
        ["--probe-depth", "50%"],
        ["--method", "lora"],
    ],
)
def test_what_a_plan_says_is_refused_beside_it(data, tmp_path, capsys, typed):
    plan = tmp_path / "plan"
    arguments = [*task_options(data, validation=False), "--budget", "3%", "--method", "random"]
    assert main(["choose", *arguments, "--out", str(plan), "--quiet"]) == OK
    assert tune(data, tmp_path / "run", "--plan", str(plan), *typed) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith(
        f"paretune: error: {typed[0]}: what is trained stands in --plan {plan} (method random)"
    )
    assert not (tmp_path / "run").exists()


def test_the_method_of_a_plan_may_be_named_again(data, tmp_path):
    arguments = [*task_options(data, validation=False), "--budget", "3%", "--method", "random"]
    main(["choose", *arguments, "--out", str(tmp_path / "plan")])
    assert tune(data, tmp_path / "run", "--plan", str(tmp_path / "plan"), "--method", "random") == OK


def test_the_head_is_counted_once_under_either_rule(data, tmp_path, capsys):
    for rule, said in (
        ("outside", "with 34 trained weights (+ 66 of"),
        ("inside", "with 100 trained weights (66 of"),
    ):
        budget = "34" if rule == "outside" else "100"
        words = ["--method", "random", "--budget", budget, "--head", rule]
        assert tune(data, tmp_path / rule, *words) == OK
        assert said in capsys.readouterr().out


def test_tune_says_the_score_and_where_the_delta_is(data, tmp_path, capsys):
    assert tune(data, tmp_path / "run", "--method", "random", "--budget", "3%") == OK
    printed = capsys.readouterr().out
    assert "accuracy 0." in printed
    assert str(tmp_path / "run/delta.safetensors") in printed


def test_sweep_prints_its_table(data, tmp_path, capsys):
    arguments = ["--steps", "4", "--batch-size", "8", "--lr", "sweep", "--out", str(tmp_path / "run")]
    assert main(["tune", *task_options(data), *arguments, "--method", "random", "--budget", "3%"]) == OK
    assert "<- chosen" in capsys.readouterr().out


def test_delta_inspect_and_verify(data, run, capsys):
    file = str(run / "delta.safetensors")
    assert main(["delta", "inspect", file]) == OK
    assert "lora" in capsys.readouterr().out
    assert main(["delta", "inspect", file, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)
    assert main(["delta", "verify", file, "--model", str(data / "bert")]) == OK
    assert "fits" in capsys.readouterr().out


def test_delta_apply_writes_a_checkpoint_that_transformers_loads(data, run, tmp_path):
    assert main(["delta", "apply", str(run / "delta.safetensors"), "--out", str(tmp_path / "merged")]) == OK
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    applied = Delta.load(run / "delta.safetensors").load_model().eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(merged(tokens).logits, applied(tokens).logits)
    assert (tmp_path / "merged/tokenizer.json").exists()


def test_delta_export_loads_with_peft(data, run, tmp_path):
    from peft import PeftModel

    assert main(["delta", "export", str(run / "delta.safetensors"), "--out", str(tmp_path / "peft")]) == OK
    base = AutoModelForSequenceClassification.from_pretrained(data / "bert", num_labels=2)
    exported = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    applied = Delta.load(run / "delta.safetensors").load_model().eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(exported(tokens).logits, applied(tokens).logits)


def test_delta_merge_of_overlapping_heads_is_told_and_can_be_averaged(data, tmp_path, capsys):
    for seed in ("0", "1"):
        tune(data, tmp_path / seed, "--method", "random", "--budget", "0.1%", "--seed", seed)
    files = [str(tmp_path / seed / "delta.safetensors") for seed in ("0", "1")]
    assert main(["delta", "merge", *files, "--out", str(tmp_path / "both.safetensors")]) == BAD_INPUT
    assert not (tmp_path / "both.safetensors").exists()
    both = ["delta", "merge", *files, "--overlap", "mean", "--out", str(tmp_path / "both.safetensors")]
    assert main(both) == OK
    assert main(["delta", "verify", str(tmp_path / "both.safetensors"), "--model", str(data / "bert")]) == OK
    assert main(both) == BAD_INPUT  # the file is there already


def test_the_command_that_a_front_prints_is_one_that_tune_takes(data):
    words = ["front", *task_options(data, validation=False), "--budgets", "1%", "--out", "front"]
    said = task_words(build_parser().parse_args(words))
    assert said[said.index("--validation") + 1] == "VALIDATION"
    assert build_parser().parse_args(["tune", *said, "--method", "head", "--out", "run"]).max_length == 32
    given = ["front", *task_options(data), "--budgets", "1%", "--out", "front"]
    assert "VALIDATION" not in task_words(build_parser().parse_args(given))
    hub = ["front", "--model", "m", "--train", "name:config:train", "--budgets", "1%", "--out", "front"]
    assert "--validation" not in task_words(build_parser().parse_args(hub))


def test_methods_lists_every_method_with_its_settings(capsys):
    assert main(["methods"]) == OK
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in METHODS)
    assert "samples=None" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--method", "fisch"], "did you mean 'fish'"),
        (["--set", "sample=3"], "did you mean 'samples'"),
        (["--set", "samples"], "name=value"),
        (
            ["--method", "lora", "--horizon", "10%"],
            "--horizon is nothing that lora knows; it is a setting of",
        ),
        (
            ["--method", "lora", "--granularity", "rows"],
            "--granularity is nothing that lora knows; it is a setting of random, gradient, fish, ird",
        ),
        (["--method", "fish", "--granularity", "row"], "granularity='row' is none of entries, rows"),
        (["--granularity", "rows", "--set", "granularity=rows"], "give it once"),
        (["--method", "random", "--granularity", "rows", "--budget", "5"], "below one of the rows"),
        (["--method", "s4", "--probe-model", "m"], "--probe-model is nothing that s4 knows"),
        (["--method", "adapeft", "--probe-depth", "half"], "--probe-depth half: give a share"),
        (["--method", "adapeft", "--horizon", "200%"], "horizon 2.0 must be a share"),
        (["--method", "adapeft", "--horizon", "10%", "--set", "horizon=0.1"], "give it once"),
        (["--method", "adapeft", "--set", "horizon=10%"], "horizon '10%' is not a number"),
        (["--method", "adapeft", "--probe-model", "no/such/folder"], "no/such/folder"),
        (["--budget", "lots"], "cannot read budget"),
        (["--lr", "fast"], "--lr fast"),
        (["--lr", "0", "--model", "no/such/folder"], "lr is 0.0; it must be a number above 0"),
        (["--lr", "nan", "--model", "no/such/folder"], "lr is nan"),
        (["--train", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--validation", "nowhere.csv"], "nowhere.csv"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--text", "sentense1"], "sentence1"),
        (["--plan", "no-plan"], "paretune choose"),
        (["--epochs", "0"], "epochs is 0"),
    ],
)
def test_bad_input_says_what_and_the_way_out_and_writes_nothing(data, tmp_path, capsys, change, said):
    arguments = ["--budget", "3%", *change]
    assert tune(data, tmp_path / "run", *arguments) == BAD_INPUT
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("paretune: error: ")
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune", "--model", "m", "--train", "t", "--out", "o", "--bugdet", "1%"], "did you mean '--budget'"),
        (["tune", "--model", "m"], "--train"),
        (["tuna"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_typos_in_options_are_named(words, said, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == BAD_INPUT
    assert said in capsys.readouterr().err


def test_help_of_every_command_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], ["tune", "--help"], ["choose", "--help"], ["delta", "merge", "--help"]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(words)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_ctrl_c_in_the_middle_leaves_a_run_that_goes_on(data, tmp_path):
    short = ["--steps", "4000", "--batch-size", "8", "--lr", "1e-3", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "paretune.cli", "tune", *task_options(data), *short]
    command += ["--method", "random", "--budget", "3%", "--checkpoints", "400"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    until = time.monotonic() + 120
    while not list(Path(tmp_path).glob("run/checkpoints/checkpoint-*/complete.json")):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert "goes on where it was" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run/result.json").exists()
    assert not list(tmp_path.glob("run/*.lock"))
