import csv
import io
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.task.files import from_dataset, from_mappings, is_missing, read_rows
from tests.tiny import write_jsonl

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def refused(path, *words):
    with pytest.raises(PareError) as caught:
        read_rows(path)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message


def test_json_lines_keep_order_and_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one", "label": 1}\r\n\n{"text": "two", "more": null}\n')
    rows = read_rows(path)
    assert rows.columns == {"text": ["one", "two"], "label": [1, None], "more": [None, None]}
    assert rows.place(1) == f"{path}, line 3"
    assert len(rows) == 2


@given(rows=st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none(), min_size=1), min_size=1))
def test_json_lines_round_trip(rows, tmp_path_factory):
    path = write_jsonl(tmp_path_factory.getbasetemp() / "round.jsonl", rows)
    read = read_rows(path)
    for index, row in enumerate(rows):
        assert {name: column[index] for name, column in read.columns.items() if name in row} == row


def test_json_reads_a_list_and_lines(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    listed, lines, single = tmp_path / "list.json", tmp_path / "lines.json", tmp_path / "one.json"
    listed.write_text(json.dumps(rows, indent=1))
    write_jsonl(lines, rows)
    write_jsonl(single, rows[:1])
    assert read_rows(listed).columns == read_rows(lines).columns == {"text": ["a", "b"]}
    assert read_rows(listed).place(1).endswith("row 2")
    assert read_rows(lines).place(1).endswith("line 2")
    assert read_rows(single).columns == {"text": ["a"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}\n{"a": 2,}\n', ["line 2", "not JSON", "column"]),
        ('{"a": 1}\n[1, 2]\n', ["line 2", "a list", "one JSON object"]),
        ('{"a": 1}\n3\n', ["line 2", "a number"]),
        ('{"a": 1}\n{"a"', ["line 2", "not JSON"]),
        ("\n\n", ["holds no rows"]),
        ("", ["empty"]),
    ],
)
def test_json_lines_name_the_bad_line(tmp_path, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    refused(path, str(path), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1},\n {"a": }]', ["line 2", "not JSON"]),
        ("[]", ["holds no rows"]),
        ('[{"a": 1}, "b"]', ["row 2", "a string"]),
        ('{"a":\n 1}', ["an object", "list of objects"]),
    ],
)
def test_json_names_what_is_wrong(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_text(content)
    refused(path, str(path), *words)


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"a": "x"}\n{"a": "caf\xe9"}\n')
    refused(path, "line 2", "UTF-8")


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_csv_round_trip(rows, tmp_path_factory):
    # A bare carriage return is a line end to the writer's reader; files are split at line feeds only.
    rows = [tuple(value.replace("\r", " ").replace("\x00", " ") for value in row) for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    path = tmp_path_factory.getbasetemp() / "round.csv"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    read = read_rows(path)
    assert list(zip(read.columns["text"], read.columns["label"], strict=True)) == rows


def test_csv_names_the_first_line_of_a_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",x\nplain,y\n')
    rows = read_rows(path)
    assert rows.columns["text"] == ["two\nlines", "plain"]
    assert [rows.place(index) for index in range(2)] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\na,b\nc\n", ["line 3", "1 values where the header has 2", "text, label"]),
        ("text,label\na,b,c\n", ["line 2", "3 values"]),
        ("text,text\na,b\n", ["line 1", "'text' twice"]),
        ('text,label\n"a,b\n', ["line 2", "quotes"]),
        ("text,label\n", ["holds no rows"]),
    ],
)
def test_csv_names_the_bad_line(tmp_path, content, words):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    refused(path, str(path), *words)


def test_a_long_csv_value_is_read_and_the_limit_put_back(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "x" * 200_000 + ",y\n")
    limit = csv.field_size_limit()
    assert len(read_rows(path).columns["text"][0]) == 200_000
    assert csv.field_size_limit() == limit


def test_a_quote_means_nothing_in_tsv(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\nhe said "no\tx\n')
    assert read_rows(path).columns == {"text": ['he said "no'], "label": ["x"]}


def test_parquet_with_and_without_class_labels(tmp_path):
    plain, classes = tmp_path / "plain.parquet", tmp_path / "classes.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "score": [0.5, None]}), plain)
    rows = read_rows(plain)
    assert rows.columns == {"text": ["a", "b"], "score": [0.5, None]}
    assert rows.place(1) == f"{plain}, row 2"
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"label": [1, 0, -1]}, features=features).to_parquet(classes)
    assert read_rows(classes).columns == {"label": ["yes", "no", None]}


def test_a_damaged_or_empty_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    refused(path, str(path), "Parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    refused(path, "holds no rows")


def test_what_is_not_a_file(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"a": 1}])
    refused(tmp_path / "trian.jsonl", "no such file", "train.jsonl")
    refused(str(tmp_path / "trian.jsonl"), "no such file")
    refused(tmp_path / "nowhere" / "train.jsonl", "no such file")
    refused(tmp_path, "folder", "train.jsonl")
    (tmp_path / "a.xlsx").write_text("x")
    refused(tmp_path / "a.xlsx", "'.xlsx'", ".parquet")


def test_rows_in_memory():
    rows = from_mappings(({"a": number} for number in range(2)), "rows")
    assert rows.columns == {"a": [0, 1]}
    assert rows.place(0) == "rows, row 1"
    with pytest.raises(PareError, match="no rows"):
        from_mappings([], "rows")
    with pytest.raises(PareError, match="row 2: str"):
        from_mappings([{"a": 1}, "b"], "rows")
    with pytest.raises(PareError, match="no rows"):
        from_dataset(datasets.Dataset.from_dict({"a": []}), "rows")


@pytest.mark.parametrize("value", [None, "", "  ", "nan", " NaN", float("nan")])
def test_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "none", []])
def test_not_missing(value):
    assert not is_missing(value)
