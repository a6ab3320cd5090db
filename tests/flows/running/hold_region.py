"""A flow that holds a region of an archive; the test hands over ARCHIVE, WHEN_BUSY, SECONDS and FOLDER as globals."""

import time
from pathlib import Path

from prefect import flow

from flows.running import exclusive


@flow(name="hold_region")
def hold(archive: str, when_busy: exclusive.WhenBusy, seconds: float, folder: Path) -> None:
    """Say when the region is entered, and what is said instead."""
    try:
        with exclusive.writing(archive, "edits", when_busy):
            (folder / "entered").touch()
            time.sleep(seconds)
    except exclusive.BusyError as error:
        (folder / "refused").write_text(str(error))


if __name__ == "__main__":
    exclusive.ASK_AGAIN_SECONDS = 0.5
    hold(ARCHIVE, WHEN_BUSY, SECONDS, Path(FOLDER))  # noqa: F821
