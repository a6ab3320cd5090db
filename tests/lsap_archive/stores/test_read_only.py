"""A place that may be read and not written: said at once, in one sentence, and never tried again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.running.retries import is_worth_another_try
from lsap_archive import (
    CorruptArchiveError,
    Store,
    StoreRefusedError,
    StoreUnavailableError,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.stores.store_errors import as_unavailable

DENIED = r"permission denied \(.*Read-only file system\); give it to this process, or name another place"


@pytest.fixture
def read_only(local_place: Any, published: Any, tmp_path: Path) -> Iterator[Any]:
    """A published archive on a file system that is mounted again as read-only."""
    folder = tmp_path / "archive"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root, and a machine that lets it")
    published(local_place)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    yield local_place
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_told_before_and_while_it_is_written(read_only: Any) -> None:
    store, before = read_only.store, os.listdir(read_only.url)
    for write in (
        store.check_writable,
        lambda: Store.from_url(f"{read_only.url}/new/folder").check_writable(),
        lambda: store.put("runs/x", b""),
        lambda: store.create("archive.json", b""),
        lambda: store.copy("archive.json", "other.json"),
        lambda: store.delete("archive.json"),
        lambda: repair_archive(read_only.url),
    ):
        with pytest.raises(StoreRefusedError, match=DENIED):
            write()
    assert open_archive(read_only.url).rows().num_rows == 5 and verify_archive(read_only.url).is_sound
    assert repair_archive(read_only.url, dry_run=True).left == [] and os.listdir(read_only.url) == before


def test_a_folder_that_may_be_written_is_left_as_it_is(every_place: Any) -> None:
    every_place.store.check_writable()
    assert every_place.store.keys() == []
    every_place.writer()
    before = every_place.store.sizes()
    every_place.store.check_writable()
    assert every_place.store.sizes() == before


def test_a_file_in_the_place_of_a_folder_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("README", "README/archive", "link", "link/archive"):
        with pytest.raises(StoreRefusedError, match=r"\((.*/README|.*/link): Not a directory\); .*name another place"):
            Store.from_url(tmp_path / place).check_writable()
    assert sorted(os.listdir(tmp_path)) == ["README", "link"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir(mode=0o500)
    with pytest.raises(StoreRefusedError, match=r"archive: Permission denied"):
        Store.from_url(tmp_path / "archive").check_writable()


class Failed:
    """A task's state with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self, raise_on_failure: bool) -> Exception:
        return self.error


def test_what_is_refused_is_not_tried_again() -> None:
    for error, again in (
        (StoreRefusedError("no"), False),
        (StoreUnavailableError("away"), True),
        (CorruptArchiveError("damaged"), False),
        (as_unavailable(OSError(30, "Read-only file system"), "x"), False),
        (as_unavailable(PermissionError(13, "Permission denied"), "x"), False),
        (as_unavailable(OSError(28, "No space left on device"), "x"), True),
        (as_unavailable(TimeoutError(), "x"), True),
    ):
        assert is_worth_another_try(None, None, Failed(error)) == again, error
