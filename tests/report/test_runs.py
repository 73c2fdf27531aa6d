"""Reports of real runs: `tune` with a sweep and without, finished or not, and a staged search."""

import json

import pytest

from paretune.cli import OK, main
from paretune.errors import PareError
from paretune.plan import Plan
from paretune.report import read_report, write_report
from paretune.report.figures import figures
from paretune.search.tune import rates_of
from tests.report.runs import front_document, front_run
from tests.report.test_report import page_of
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_model("bert", folder / "bert")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 30, seed=1))
    return folder


def run(data, command, out, *more):
    task = [
        "--model",
        str(data / "bert"),
        "--train",
        str(data / "train.jsonl"),
        "--quiet",
        "--max-length",
        "32",
    ]
    return main([command, *task, "--out", str(out), "--steps", "4", "--batch-size", "8", *more])


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    validation = ["--validation", str(data / "validation.jsonl")]
    ird = ["--method", "ird", "--budget", "3%", "--set", "samples=8", "steps=2", "--lr", "sweep"]
    assert run(data, "tune", out, *validation, *ird) == OK
    return out


def test_tune_leaves_a_report_of_what_it_did(tuned):
    document = json.loads((tuned / "report.json").read_text())
    result = json.loads((tuned / "result.json").read_text())
    assert document["kind"] == "tune" and document["missing"] == []
    assert f"{result['score']:.4f}" in document["recommendation"]["text"]
    assert "One run under one seed" in document["recommendation"]["text"]
    assert tuple(p["lr"] for p in document["rates"][0]["points"]) == rates_of(Plan.load(tuned / "plan"))
    assert document["rates"][0]["chosen"] == result["lr"]
    assert len(document["plans"][0]["kept"]) == 8
    assert (tuned / "report.html").stat().st_size > 1e6
    assert "rates" in figures(read_report(tuned))


def test_json_prints_nothing_beside_the_result(data, tmp_path, capsys):
    out, validation = tmp_path / "run", ["--validation", str(data / "validation.jsonl")]
    random = ["--method", "random", "--budget", "3%", "--lr", "1e-3", "--json"]
    assert run(data, "tune", out, *validation, *random) == OK
    assert json.loads(capsys.readouterr().out)["method"] == "random"
    assert (out / "report.html").exists()


def test_a_head_inside_the_budget_is_counted_once(data, tmp_path):
    out, validation = tmp_path / "run", ["--validation", str(data / "validation.jsonl")]
    inside = ["--method", "random", "--budget", "200", "--head", "inside", "--lr", "1e-3"]
    assert run(data, "tune", out, *validation, *inside) == OK
    (candidate,) = read_report(out).candidates
    assert candidate.head > 0
    assert (
        candidate.trained + candidate.head == json.loads((out / "result.json").read_text())["trained"] == 200
    )
    front = tmp_path / "front"
    document = front_document()
    document["request"]["head"] = "inside"
    front_run(front, {}, document)
    for row, shown in zip(document["candidates"], read_report(front).candidates, strict=True):
        assert shown.trained + shown.head == row["trained"]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["result.json", "delta.safetensors"], "result.json is not there"),
        (["result.json", "sweep.json"], "result.json is not there"),
        (["result.json", "sweep.json", "plan/plan.json"], "nothing has been chosen yet"),
    ],
)
def test_an_unfinished_tune_says_what_is_missing(tuned, tmp_path, gone, said):
    for path in tuned.rglob("*"):
        if path.is_file() and str(path.relative_to(tuned)) not in gone:
            target = tmp_path / "run" / path.relative_to(tuned)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    report = read_report(tmp_path / "run")
    assert report.status == "unfinished"
    assert any(said in sentence for sentence in report.missing)
    page = page_of(tmp_path / "run")
    assert ("Learning rates" in page) == ("sweep.json" not in gone)
    assert ("Blocks and kinds" in page) == ("plan/plan.json" not in gone)


def test_a_rate_that_diverged_is_shown_with_its_cause(tuned, tmp_path):
    (tmp_path / "request.json").write_text((tuned / "request.json").read_text())
    rows = [
        {"lr": 0.1, "steps": 4, "failed": "the loss was <b>nan</b>"},
        {"lr": 0.01, "f1": 0.5, "loss": 1.0},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps(rows))
    page = page_of(tmp_path)
    assert "the loss was &lt;b&gt;nan&lt;/b&gt;" in page
    (tmp_path / "sweep.json").write_text(json.dumps({"lr": 1}))
    with pytest.raises(PareError, match="no list of learning rates"):
        read_report(tmp_path)


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    pytest.importorskip("optuna")
    out = tmp_path_factory.mktemp("runs") / "search"
    space = ["--budget", "8%", "--groups", "2", "--strategies", "lora", "bias", "--lr", "1e-3"]
    assert run(data, "search", out, *space) == OK
    return out


def test_a_search_leaves_its_stages_and_trials(searched):
    document = json.loads((searched / "report.json").read_text())
    source = json.loads((searched / "search.json").read_text())
    assert [stage["name"] for stage in document["stages"]] == [stage["name"] for stage in source["stages"]]
    assert len(document["trials"]) == source["trials"]
    assert "design.yaml" in document["recommendation"]["text"]
    page = page_of(searched)
    assert all(f"<h3>{stage['name']}: {stage['winner']}</h3>" in page for stage in source["stages"])
    assert (searched / "design.yaml").read_text().splitlines()[0] in page


def test_an_unfinished_search_shows_its_trials(searched, tmp_path):
    (tmp_path / "study.journal").write_bytes((searched / "study.journal").read_bytes())
    report = read_report(tmp_path)
    assert report.trials and "the search is not finished" in report.missing[0]
    assert report.metric == "f1" or report.metric == "accuracy"
    assert f"All {len(report.trials)} trials" in page_of(tmp_path)


def test_a_damaged_or_newer_search_is_refused(searched, tmp_path):
    (tmp_path / "study.journal").write_text("no journal\n" * 3)
    with pytest.raises(PareError, match="damaged"):
        read_report(tmp_path)
    (tmp_path / "study.journal").unlink()
    source = json.loads((searched / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps(source | {"schema": 7}))
    with pytest.raises(PareError, match="schema 7 is newer"):
        read_report(tmp_path)
    (tmp_path / "search.json").write_text(json.dumps(source))
    written = write_report(tmp_path)
    assert any("study.journal is not there" in sentence for sentence in written.missing)


def test_auto_has_two_pages_as_soon_as_there_is_something_to_show(tuned, tmp_path, plans, capsys):
    run = tmp_path / "run"
    front_run(run / "auto", plans)
    assert main(["report", str(run)]) == OK  # the trials are done, nothing is tuned yet
    assert (run / "auto/report.html").exists() and not (run / "report.html").exists()
    for name in ("request.json", "result.json"):
        (run / name).write_bytes((tuned / name).read_bytes())
    assert main(["report", str(run)]) == OK
    assert json.loads((run / "report.json").read_text())["kind"] == "tune"
    assert json.loads((run / "auto/report.json").read_text())["kind"] == "front"
    assert str(run / "report.html") in capsys.readouterr().out
