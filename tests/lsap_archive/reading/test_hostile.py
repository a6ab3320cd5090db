"""Archives that somebody else wrote: names in their documents and links in their folders lead nowhere outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsap_archive import (
    ArchiveError,
    ArchiveMismatchError,
    PlannedRow,
    RunReader,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.documents import decode_document, encode_document

OUTSIDE = ["../../secret.txt", "/etc/passwd", "rows/../../../secret.txt", "a\x00b", "rows//x", "./x", "C:\\x", ""]


def rewrite(place: Any, key: str, change: Any) -> None:
    values = decode_document(place.store.get(key), key)
    change(values)
    place.store.put(key, encode_document(values, key))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_outside_is_refused(memory_place: Any, published: Any, name: str) -> None:
    published(memory_place)
    key = "runs/run-1/_manifest.json"
    rewrite(memory_place, key, lambda values: values["files"][-1].update(name=name))
    before = memory_place.store.get(key)
    for read in (lambda: open_archive(memory_place.url), lambda: RunReader.open(memory_place.url, "run-1")):
        with pytest.raises(ArchiveMismatchError, match=r"names the file .*do not use this archive"):
            read()
    (problem,) = verify_archive(memory_place.url).problems
    assert problem.key == key and not problem.is_damage
    report = repair_archive(memory_place.url)
    assert report.left and not (report.restored or report.retired) and memory_place.store.get(key) == before


@pytest.mark.parametrize("field", ["name", "staged"])
def test_a_commit_marker_that_names_files_outside_is_refused(memory_place: Any, work: Any, field: str) -> None:
    run = memory_place.writer().start_run(work.plan())
    work.write(run, 0)
    rewrite(
        memory_place, "runs/run-1/_commit/00000.json", lambda values: values["objects"][0].update({field: "../../x"})
    )
    with pytest.raises(ArchiveMismatchError, match="do not use this archive"):
        run.promote_committed()


@pytest.mark.parametrize("run_id", ["../run-1", "/run-1", "run-2"])
def test_a_manifest_of_another_run_is_refused(memory_place: Any, published: Any, run_id: str) -> None:
    published(memory_place)
    rewrite(memory_place, "runs/run-1/_manifest.json", lambda values: values.update(run_id=run_id))
    with pytest.raises(ArchiveError, match=r"run id|is the manifest of run run-2"):
        open_archive(memory_place.url)


def test_links_that_lead_out_of_the_archive_are_refused(local_place: Any, published: Any, tmp_path: Path) -> None:
    published(local_place)
    root, secret = Path(local_place.url), tmp_path / "secret.txt"
    secret.write_bytes(b"of somebody")
    codes = root / "runs/run-1/w_plus/c/0/0/0"
    moved = tmp_path / "moved"
    codes.rename(moved)
    codes.symlink_to(moved)  # the very bytes, and yet they lie outside
    archive = open_archive(local_place.url)
    with pytest.raises(ArchiveMismatchError, match="is a link that leads out of"):
        archive.codes(["image-0"], "lsap_o")
    codes.unlink()
    moved.rename(codes)
    folder = tmp_path / "folder"
    folder.mkdir()
    (root / "reports").symlink_to(folder)
    with pytest.raises(ArchiveMismatchError, match="is a link that leads out of"):
        local_place.writer().put_report("invert.html", b"x")
    with pytest.raises(ArchiveMismatchError, match="is a link that leads out of"):
        local_place.store.delete_folder("reports")
    (root / "runs/run-1/loop").symlink_to(root / "runs")
    assert not [key for key in local_place.store.sizes() if "loop" in key]
    assert list(folder.iterdir()) == [] and secret.read_bytes() == b"of somebody"


def test_a_linked_archive_is_an_archive(local_place: Any, published: Any, tmp_path: Path) -> None:
    published(local_place)
    (tmp_path / "by-another-name").symlink_to(local_place.url)
    assert verify_archive(str(tmp_path / "by-another-name")).is_sound


def test_an_id_in_a_row_is_no_path(memory_place: Any, work: Any) -> None:
    """Image ids may be anything; they are no keys."""
    rows = (PlannedRow(0, "../../etc/passwd", "file:///x", "d"),)
    run = memory_place.writer().start_run(work.plan(rows=rows))
    work.write_all(run)
    assert run.publish({})
    assert open_archive(memory_place.url).codes(["../../etc/passwd"], "lsap_o").shape == (1, 2, 3)
    assert all(".." not in key for key in memory_place.store.sizes())
