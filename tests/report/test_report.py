"""From run folders to report.json and to the page's data, whatever state the run is in."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from paretune.cli import BAD_INPUT, OK, main
from paretune.errors import PareError
from paretune.report import read_report, write_report
from paretune.report.figures import figures
from paretune.report.page import render
from paretune.report.plans import plan_document
from paretune.selection import Selection
from tests.report.runs import CAUSE, HOSTILE, front_document, write_front


def page_of(run):
    """The page without plotly.js: what is ours in it."""
    return render(read_report(run), "")


def data_of(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(block[1])


def every_figure(found):
    if "data" in found:
        return [found]
    values = found.values() if isinstance(found, dict) else found
    return [figure for value in values for figure in every_figure(value)]


def without(document, *names):
    return {name: value for name, value in document.items() if name not in names}


def test_a_front_is_written_whole(front):
    written = write_report(front)
    document = json.loads(written.data.read_text())
    source = front_document()
    assert (document["schema"], document["kind"], document["status"]) == (1, "front", "finished")
    assert [c["name"] for c in document["candidates"]] == [c["name"] for c in source["candidates"]]
    assert document["candidates"][0]["seeds"] == [0, 1, 2]
    assert len(document["trials"]) == 100
    assert document["recommendation"]["text"] == source["recommendation"]["text"]
    assert {plan["method"] for plan in document["plans"]} == {"fish", "ird", "lora", "bitfit", "random"}
    assert len(document["rates"]) >= 10
    assert written.page.stat().st_size <= 6 * 2**20


def test_the_page_holds_what_the_run_holds(front):
    page = page_of(front)
    source = front_document()
    assert source["recommendation"]["text"] in page
    assert all(candidate["name"] in page for candidate in source["candidates"])
    assert CAUSE in page
    assert "a prefix has 46,080 at least" in page
    assert "sentence-transformers/all-MiniLM-L6-v2" in page
    assert "of the kept samples" in page
    points = data_of(page)["points"]
    assert points[0]["command"] == source["candidates"][0]["command"]


def test_every_figure_is_one_that_plotly_knows(front):
    found = figures(read_report(front))
    assert {"front", "predicted", "rates", "losses", "plans"} == found.keys()
    assert set(found["front"]) == {"trained", "delta_bytes", "peak_bytes", "step_seconds"}
    every = every_figure(found)
    assert len(every) > 30
    for figure in every:
        go.Figure(figure)


def test_only_the_fullest_tensors_are_drawn(front, monkeypatch):
    monkeypatch.setattr("paretune.report.plans.DRAWN", 3)
    report = read_report(front)
    (plan,) = [p for p in report.plans if p["method"] == "fish"][:1]
    drawn = {t["name"]: t["count"] for t in plan["tensors"] if t["density"]}
    assert len(drawn) == 3
    assert min(drawn.values()) >= max(t["count"] for t in plan["tensors"] if not t["density"])
    assert f"The 3 fullest of {len(plan['tensors'])} tensors." in render(report, "")


def test_the_map_and_the_density_count_every_selected_weight(front, plans):
    for plan in read_report(front).plans:
        assert sum(map(sum, plan["map"]["counts"])) == plan["trained"]
        source = {s.tensor: s for s in plans[plan["method"]].selections}
        for tensor in plan["tensors"]:
            if tensor["density"]:
                counts = tensor["density"]["counts"]
                assert sum(map(sum, counts)) == tensor["count"] == source[tensor["name"]].count
                assert len(counts) == len(tensor["density"]["row_ends"])
    drawn = [
        t for p in read_report(front).plans if p["method"] == "fish" for t in p["tensors"] if t["density"]
    ]
    assert drawn


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks"])
def test_units_of_a_plan_are_named_and_drawn(front, plans, tmp_path, kind):
    parts = (Selection("a", (40, 50), kind, np.array([1, 3])), Selection("b", (40,), "all"))
    replace(plans["fish"], selections=parts, others=(), budget=None).save(tmp_path / "units")
    document = plan_document(tmp_path / "units", "units")
    drawn, other = document["tensors"]
    assert (drawn["granularity"], other["granularity"], other["density"]) == (kind, "all", None)
    assert sum(map(sum, drawn["density"]["counts"])) == parts[0].count
    report = read_report(front)
    report.plans = [document]
    page = render(report, "")
    assert f" weights ({kind}, whole tensors) of " in page
    assert f"a: {parts[0].count} weights ({kind})</option>" in page


@pytest.mark.parametrize(
    "left",
    [
        {"status": "running", "recommendation": None},
        {"status": "running", "recommendation": None, "candidates": []},
        {"status": "interrupted", "recommendation": None, "candidates": [], "trials": [], "skipped": []},
    ],
)
def test_an_unfinished_front_shows_what_is_there_and_says_what_is_missing(front, left):
    write_front(front, front_document() | left)
    report = read_report(front)
    assert any(left["status"] in sentence for sentence in report.missing)
    page = page_of(front)
    assert all(sentence.split("`")[0] in page for sentence in report.missing)
    assert ("fish 0.5%" in page) == bool(left.get("trials", True))


def test_a_front_without_front_json_yet(front):
    (front / "front.json").unlink()
    (front / "request.json").write_text(json.dumps({"model": "some model", "methods": ["fish"]}))
    report = read_report(front)
    assert "no trial has finished" in report.missing[0]
    assert "some model" in page_of(front)


def test_lost_and_damaged_plans_are_named_and_the_rest_is_drawn(front):
    shutil.rmtree(front / "plans/ird")
    (front / "plans/fish/plan.safetensors").write_bytes(b"nothing")
    report = read_report(front)
    assert {plan["method"] for plan in report.plans} == {"lora", "bitfit", "random"}
    assert sum("is not shown" in sentence for sentence in report.missing) == 2
    assert "is not shown" in page_of(front)


def test_a_plan_outside_of_the_run_is_not_read(front):
    document = front_document()
    for candidate in document["candidates"]:
        candidate["plan"] = "../../elsewhere"
    write_front(front, document)
    assert any("lies outside of the run" in sentence for sentence in read_report(front).missing)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, r"schema 2 is newer than this paretune reads \(1\); upgrade it"),
        ({"schema": None}, "no schema version"),
        ({"schema": 0}, "no schema version"),
        ({"status": "half done"}, "status 'half done' is none of"),
        ({"trials": [3]}, "trial 0: 3 is not an object"),
        ({"candidates": [{"score": "high"}]}, "candidate 0: score is 'high'"),
        ({"candidates": {}}, "candidates is {}"),
    ],
)
def test_other_versions_and_other_files_are_refused(front, capsys, change, said):
    write_front(front, front_document() | change)
    with pytest.raises(PareError, match=said):
        write_report(front)
    assert main(["report", str(front)]) == BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err
    assert not (front / "report.html").exists()


def test_an_older_file_lacks_fields_and_is_read(front):
    document = front_document()
    document["candidates"] = [
        without(c, "predicted", "low", "high", "command", "step_seconds", "settings")
        for c in document["candidates"]
    ]
    document["trials"] = [without(t, "losses", "command", "scores", "seconds") for t in document["trials"]]
    write_front(front, without(document, "cost", "skipped", "model_weights"))
    found = data_of(page_of(front))["figures"]
    assert "predicted" not in found and "losses" not in found
    assert "step_seconds" not in found["front"]


def test_half_a_file_is_named(front):
    (front / "front.json").write_text('{"schema": 1, "trials": [')
    with pytest.raises(PareError, match=r"front\.json: damaged"):
        write_report(front)


def test_not_a_number_is_not_known(front):
    document = front_document() | {"recommendation": None}
    document["candidates"][0]["score"] = float("nan")
    document["trials"][0]["seconds"] = float("inf")
    (front / "front.json").write_text(json.dumps(document))
    report = read_report(front)
    assert report.candidates[0].score is None and report.trials[0].seconds is None
    found = json.dumps(data_of(page_of(front)))
    assert "NaN" not in found and "Infinity" not in found
    assert any(sentence.startswith("Without a score so far: fish") for sentence in report.missing)


def hostile(value):
    """The same document with every text replaced or followed by markup."""
    if isinstance(value, dict):
        return {name: each if name in KEPT else hostile(each) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


KEPT = ("plan", "status", "state")


def test_markup_in_any_text_is_shown_and_never_read(front):
    document = hostile(front_document())
    document["candidates"][0]["settings"] = {HOSTILE: HOSTILE}
    write_front(front, document)
    page = page_of(front)
    assert "<img" not in page and "onerror=&#34;" in page
    assert "<script>window" not in page
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert not set(data) & set("<>&'\u2028")
    for figure in every_figure(data_of(page)["figures"]):
        texts = [text for text in texts_of(figure) if "onerror" in text]
        assert all("<img" not in text and "</script" not in text for text in texts)


def test_markup_in_kept_samples_is_text_too(front, plans):
    notes = plans["ird"].notes | {
        "kept": [{"loss": 0.5, "label": HOSTILE, "text": HOSTILE}],
        "table": {"title": HOSTILE, "columns": ["", HOSTILE], "rows": [[HOSTILE, HOSTILE]]},
    }
    replace(plans["ird"], notes=notes).save(front / "plans/ird")
    page = page_of(front)
    assert page.count("onerror=&#34;") >= 6 and "0.500" in page
    assert "<img" not in page and "<script>window" not in page


def texts_of(value):
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in values for text in texts_of(each)]


def test_the_policy_lets_only_the_pages_own_scripts_run(front):
    page = write_report(front).page.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe-eval" not in policy and "script-src &#39;unsafe-inline" not in policy
    assert get_plotlyjs()[:2000] in page


def test_lower_is_better_turns_the_front_round(front):
    document = front_document()
    document["request"] |= {"metric": "loss", "higher_is_better": False}
    for candidate in document["candidates"]:
        candidate["on_front"] = False
    write_front(front, document)
    report = read_report(front)
    line = figures(report)["front"]["delta_bytes"]["data"][0]
    assert line["y"] == sorted(line["y"], reverse=True)
    assert line["y"][-1] == min(candidate.score for candidate in report.candidates)


def test_predictions_are_compared_by_rank_among_those_trained_to_the_end(front):
    assert read_report(front).prediction["n"] == 24
    document = front_document()
    for n, candidate in enumerate(document["candidates"]):
        candidate |= {"score": 0.5 + n / 100, "predicted": float(n), "share": 1.0 if n < 5 else 0.25}
    write_front(front, document)
    assert read_report(front).prediction == {"n": 5, "spearman": pytest.approx(1.0)}
    document["request"]["higher_is_better"] = False
    write_front(front, document)
    assert read_report(front).prediction["spearman"] == pytest.approx(-1.0)
    for candidate in document["candidates"]:
        candidate["score"] = 0.5
    write_front(front, document)
    assert read_report(front).prediction is None
    page_of(front)  # scores that are all the same are drawn too


def test_candidates_that_were_stopped_on_the_way_are_open_and_on_no_front(front):
    document = front_document()
    best = max(document["candidates"], key=lambda candidate: candidate["score"])
    best |= {"share": 0.25, "on_front": False}
    write_front(front, document)
    for figure in figures(read_report(front))["front"].values():
        line, *traces = figure["data"]
        assert best["score"] not in line["y"]
        marks = {y: mark for t in traces for y, mark in zip(t["y"], t["marker"]["symbol"], strict=True)}
        assert {y for y, mark in marks.items() if mark.endswith("-open")} == {best["score"]}


def test_without_plotly_the_data_is_written_and_the_page_is_named(front, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(front)]) == OK
    assert "pip install 'paretune[report]'" in capsys.readouterr().out
    assert (front / "report.json").exists() and not (front / "report.html").exists()


def test_folders_that_hold_no_run(tmp_path, capsys):
    with pytest.raises(PareError, match="no such folder"):
        read_report(tmp_path / "nowhere")
    with pytest.raises(PareError, match="holds no run"):
        read_report(tmp_path)
    assert main(["report", str(tmp_path)]) == BAD_INPUT
    assert "holds no run" in capsys.readouterr().err
