"""Data sets of the Hugging Face Hub by name, through `datasets`."""

import re
from pathlib import Path

import datasets
from datasets.exceptions import DatasetNotFoundError

from paretune.errors import PareError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]*){0,2}")
FILE_SUFFIX = re.compile(r"\.[A-Za-z]+")


def is_hub_name(text: str) -> bool:
    """Whether a string that is no file here can be meant as ``name[:config[:split]]`` on the Hub.

    A string with a file's suffix, or inside a folder that exists, is taken for a misspelt file.
    """
    path = Path(text)
    inside = path.parent != Path() and path.parent.is_dir()
    return NAME.fullmatch(text) is not None and not FILE_SUFFIX.fullmatch(path.suffix) and not inside


def load_hub(text: str, split: str = "train") -> tuple[datasets.Dataset, str]:
    """Fetch one split of a data set.

    ``a/b`` is the data set ``b`` of the organisation ``a``; where there is none, it is the configuration
    ``b`` of the data set ``a``, so that ``glue/mrpc`` means what it says.

    Args:
        text: ``name[:config[:split]]``.
        split: The split where the name gives none.

    Returns:
        The split, and what an error should call it.

    Raises:
        PareError: There is no such data set, configuration or split, or the Hub cannot be reached.
    """
    split = _parts(text)[2] or split
    splits = _open(text)
    if split not in splits:
        raise PareError(
            f"{text}: the data set has no split {split!r}; it has {', '.join(splits)}: "
            "name one as name:config:split"
        )
    return splits[split], f"{text} (split {split})"


def has_split(text: str, split: str) -> bool:
    """Whether the data set of the Hub has this split.

    Raises:
        PareError: There is no such data set or configuration, or the Hub cannot be reached.
    """
    return split in _open(text)


def _parts(text: str) -> tuple[str, str | None, str | None]:
    """Path, configuration and split of a name."""
    path, config, split, *_ = [*text.split(":"), "", ""]
    return path, config or None, split or None


def _open(text: str) -> datasets.DatasetDict:
    """All splits of the data set."""
    path, config, _ = _parts(text)
    group, slash, rest = path.partition("/")
    readings = [(path, config)]
    if slash and config is None:
        readings.append((group, rest))
    for reading in readings:
        try:
            return datasets.load_dataset(*reading)
        except DatasetNotFoundError as error:
            missing = error
        except ConnectionError as error:
            raise PareError(
                f"{text}: there is no such file, and the Hub cannot be reached to look for a data set "
                f"({error}); check the connection, or give a file"
            ) from error
        except (OSError, ValueError) as error:
            raise PareError(
                f"{text}: the Hub's data set cannot be read: {error}; names are name[:config[:split]]"
            ) from error
    raise PareError(
        f"{text}: neither a file here nor a data set on the Hub that can be seen ({missing}); "
        "check the spelling, or give a file that ends in .jsonl, .json, .csv, .tsv or .parquet"
    ) from missing
