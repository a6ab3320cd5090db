"""What this machine has found out and need not find out again, in the user's cache folder.

Nothing hangs on it: a folder that is lost, or cannot be written, only costs the time to find out once more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from typing import Any

from tasks.settings import Settings

logger = logging.getLogger(__name__)


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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(values, file, indent=1, sort_keys=True)
                os.replace(temporary, self.path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)
                raise
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
