"""What this machine has found out and need not find out again, in the user's cache folder.

Nothing hangs on it: a folder that is lost, or cannot be written, only costs the time to find out once more.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tasks.array_files import ArrayFileError, read_npz
from tasks.settings import Settings

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def put_in_place(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its place whole, at the end of the block; if that fails, nothing of it is left.

    Raises:
        OSError: its folder cannot be made, or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


class Remembered:
    """Values by key, in one small JSON file; of two processes that write at once one may be forgotten."""

    def __init__(self, name: str):
        """The file of a name, such as "encoders", in the machine's folder of caches."""
        self.path = Settings.from_environment().cache_folder / f"{name}.json"

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._all().get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember a JSON value."""
        values = self._all() | {key: value}
        try:
            with put_in_place(self.path) as file:
                file.write(json.dumps(values, indent=1, sort_keys=True).encode())
        except OSError as error:
            logger.warning("%s cannot be written (%s): it is found out again the next time", self.path, error)

    def _all(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s): it is begun anew", self.path, error)
            return {}
        return values if isinstance(values, dict) else {}


def remembered_arrays(
    name: str, key: str, find: Callable[[], Mapping[str, NDArray[Any]]]
) -> Mapping[str, NDArray[Any]]:
    """Arrays by name that this machine has found before, or finds now.

    Args:
        name: of the kind, such as "anchors"; a folder in the machine's folder of caches.
        key: everything that they depend on, as a digest.
        find: finds them.
    """
    path = Settings.from_environment().cache_folder / name / f"{key}.npz"
    try:
        return read_npz(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ArrayFileError) as error:
        logger.warning("%s cannot be read (%s): it is found out again", path, error)
    arrays: dict[str, Any] = dict(find())
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    try:
        with put_in_place(path) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        logger.warning("%s cannot be written (%s): it is found out again the next time", path, error)
    return arrays
