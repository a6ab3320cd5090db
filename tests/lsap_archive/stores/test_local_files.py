"""What lies inside a folder of this machine, links followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsap_archive.stores.local_files import is_inside


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("runs/one.txt", True),
        ("runs/not/yet", True),
        ("runs/here", True),  # a link to runs/one.txt
        ("runs/out", False),
        ("away/secret.txt", False),  # its folder is a link
        ("runs/loop/loop/one.txt", True),
        ("runs/../../other/secret.txt", False),
        ("../other/secret.txt", False),
        ("../root-2/secret.txt", False),
        ("", False),
        (".", False),
    ],
)
@pytest.mark.parametrize("is_link", [False, True])
def test_a_path_is_inside_when_no_link_leads_out(tmp_path: Path, key: str, wanted: bool, is_link: bool) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "runs", other, tmp_path / "root-2"):
        folder.mkdir(parents=True)
    (root / "runs/one.txt").touch()
    (other / "secret.txt").touch()
    for link, to in {"runs/here": root / "runs/one.txt", "runs/out": other / "secret.txt", "away": other}.items():
        (root / link).symlink_to(to)
    (root / "runs/loop").symlink_to(root / "runs")
    (tmp_path / "named").symlink_to(root)
    folder = str(tmp_path / ("named" if is_link else "root"))
    assert is_inside(f"{folder}/{key}", folder) is wanted
    assert not is_inside(f"{folder}-2/secret.txt", folder)
