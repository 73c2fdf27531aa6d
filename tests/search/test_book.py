import json

import pytest

from paretune.errors import PareError
from paretune.search.book import Book
from paretune.search.jobs import Job, Scored

OPTIONS = {"rate": ("0.1", "0.2")}
POINT = {"rate": "0.1"}
JOB = Job("a 0.1", {"seed": 7, "point": POINT}, 0.25)
IDENTITY = {"task": "a", "budget": "1%"}


def open_book(path, **changed):
    return Book(path / "study.journal", IDENTITY | changed)


def test_what_is_finished_is_found_again(tmp_path):
    book = open_book(tmp_path)
    scored = Scored(0.5, 2.0, 1.5, loss=0.1, details={"trained": 3})
    book.finish(book.begin(JOB, POINT, OPTIONS), scored)
    diverged = Job("a 0.2", {"seed": 7}, 0.25)
    book.finish(book.begin(diverged, {"rate": "0.2"}, OPTIONS), Scored(None, 1.0, 1.0, "nan"))
    book.give_up(book.begin(Job("b 0.1", {}, 0.25), POINT, OPTIONS), "interrupted")
    book.note("seconds", 3.5)
    book.close()
    book = open_book(tmp_path)
    assert list(book.trials()) == [
        (JOB.key, JOB, scored),
        (diverged.key, diverged, Scored(None, 1.0, 1.0, "nan")),
    ]
    assert book.noted("seconds") == 3.5
    assert book.noted("else") is None
    book.close()


def test_it_is_a_study_that_optuna_reads(tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    book = open_book(tmp_path)
    book.finish(book.begin(JOB, POINT, OPTIONS), Scored(0.5, 2.0, 1.5))
    book.close()
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.best_value == 0.5
    assert study.best_params == {"rate": "0.1"}


def test_a_running_trial_of_a_dead_process_is_not_finished(tmp_path):
    book = open_book(tmp_path)
    book.begin(JOB, POINT, OPTIONS)
    book.close()
    book = open_book(tmp_path)
    assert not book.finished()
    book.finish(book.begin(JOB, POINT, OPTIONS), Scored(0.5, 2.0, 1.5))
    assert list(book.finished()) == [JOB.key]
    book.close()


def test_only_one_process_searches_in_a_folder(tmp_path):
    book = open_book(tmp_path)
    with pytest.raises(PareError, match="another process is searching here"):
        open_book(tmp_path)
    book.close()
    open_book(tmp_path).close()


def test_another_search_in_the_folder_is_refused(tmp_path):
    open_book(tmp_path, budget="7%").close()  # nothing was begun: it may be another
    book = open_book(tmp_path)
    book.begin(JOB, POINT, OPTIONS)
    book.close()
    with pytest.raises(PareError, match=r"another search: budget was \"1%\", now \"2%\"; give another --out"):
        open_book(tmp_path, budget="2%")
    open_book(tmp_path).close()


def test_a_study_of_another_version_is_refused(tmp_path):
    book = open_book(tmp_path)
    book.begin(JOB, POINT, OPTIONS)
    book.close()
    path = tmp_path / "study.journal"
    path.write_text(path.read_text().replace('"schema":2', '"schema":9'))
    with pytest.raises(PareError, match=r"schema 9, this paretune reads 2; finish it with the version"):
        open_book(tmp_path)


@pytest.mark.parametrize("content", ["my thesis\n", "{}\n", '{"a": 1}\n{"b"}\n{}\n', "[1]\n"])
def test_a_file_that_is_no_study_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "study.journal"
    path.write_text(content)
    with pytest.raises(PareError, match=r"study.journal: is (no study|damaged)"):
        open_book(tmp_path)
    assert path.read_text() == content


def test_a_study_of_somebody_else_is_refused(tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.create_study(study_name="paretune", storage=storage, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(PareError, match="paretune did not make"):
        open_book(tmp_path)


def test_a_half_written_line_is_cut_off(tmp_path):
    book = open_book(tmp_path)
    book.finish(book.begin(JOB, POINT, OPTIONS), Scored(0.5, 2.0, 1.5))
    book.close()
    with (tmp_path / "study.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    book = open_book(tmp_path)
    assert list(book.finished()) == [JOB.key]
    book.note("seconds", 1.0)
    book.close()
    assert all(json.loads(line) for line in (tmp_path / "study.journal").read_text().splitlines())
    book = open_book(tmp_path)
    assert book.noted("seconds") == 1.0
    book.close()
