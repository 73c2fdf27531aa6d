"""Files are written whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old file or the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the name by
    one rename. The folder is made if it is absent.

    Args:
        path: The file to write.
        content: Its whole content; text is encoded as UTF-8.

    Raises:
        OSError: The disk is full or the folder cannot be written; an older file is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    """The process's file-mode mask (reading it means setting it twice)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flush the folder entry, so that the rename itself survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
