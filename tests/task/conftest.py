import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from paretune.task.models import load_tokenizer
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a kind, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).exists() else tiny_model(kind, root / kind)

    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint) -> Callable[[str], PreTrainedTokenizerBase]:
    """The tokenizer of a tiny checkpoint of a kind."""
    return lambda kind: load_tokenizer(str(checkpoint(kind)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the shared data; the test is skipped where it is not."""
    default = Path(__file__).parents[3] / "shared"
    folder = Path(os.environ.get("PARETUNE_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip("the shared data is not here; set PARETUNE_SHARED to its folder")
    return folder
