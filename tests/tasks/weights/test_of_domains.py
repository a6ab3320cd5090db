"""Published files that a domain needs: found by their hash, missing, or another file, in words and in one sentence."""

import hashlib
import re
from pathlib import Path

import pytest

from domains.domain import Domain, WeightFile, builtin_domains, load_domain
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from tasks.measuring.networks import EvaluationChoice
from tasks.settings import Settings
from tasks.weights.networks import IDENTITY_FILES, LPIPS_TRUNKS
from tasks.weights.of_domains import (
    check_weights,
    look_for_weights,
    offered_table,
    published_of,
    weights_document,
    weights_lines,
    with_published_weights,
)
from tasks.weights.published import Published

VGG = "vgg16-397923af.pth"
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def domain(**weights: dict[str, str]) -> Domain:
    files = {role.replace("__", " "): WeightFile(**file) for role, file in weights.items()}
    return Domain("own", "of this test", "lpips-vgg", weights=files)


def test_a_file_is_found_by_its_hash_or_by_its_name_where_no_hash_is_known(tmp_path: Path) -> None:
    for name in ("whole.pt", "prefix.pt", "unknown.pt", "other.pt"):
        (tmp_path / name).write_bytes(CONTENT)
    wanted = domain(
        generator={"file": "whole.pt", "sha256": SHA256},
        psp={"file": "prefix.pt", "sha256": SHA256[:8]},
        e4e={"file": "unknown.pt"},
        lsap_e={"file": "other.pt", "sha256": "0123abcd"},
        moco={"file": "missing.pt"},
    )
    found = {one.role: one for one in look_for_weights(wanted, Published(tmp_path))}
    assert {role: one.state for role, one in found.items()} == {
        "generator": "found",
        "psp": "found",
        "e4e": "found, hash not known",
        "lsap_e": "another file",
        "moco": "missing",
    }
    assert found["lsap_e"].sha256 == SHA256 and found["moco"].sha256 == ""
    lines = weights_lines(found.values())
    assert len(lines) == 7 and any(f"{SHA256[:8]}, wanted 0123abcd" in line for line in lines)
    assert weights_document(found.values())["moco"]["state"] == "missing"


def test_one_sentence_names_all_that_is_missing_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "g.pt").write_bytes(CONTENT)
    wanted = domain(
        generator={"file": "g.pt", "sha256": "00"}, e4e={"file": "e.pt"}, moco={"file": "m.pth"}, arcface={"file": "a"}
    )
    with pytest.raises(MissingWeightsError) as caught:
        check_weights(wanted, Published(tmp_path), ["generator", "e4e", "moco", "no role of it"])
    message = str(caught.value)
    assert f"g.pt (generator), which has SHA-256 {SHA256[:16]}; e.pt (e4e); m.pth (moco)" in message
    assert "LSAP_BACKBONES" in message and "arcface" not in message
    check_weights(domain(generator={"file": "g.pt"}), Published(tmp_path), ["generator"])


def test_published_files_take_the_places_that_the_domain_leaves_open(tmp_path: Path) -> None:
    wanted = domain(
        generator={"file": "g.pt"}, e4e={"file": "e.pt"}, direction__pose={"file": "pose.pt"}, moco={"file": "m.pth"}
    )
    filled = with_published_weights(wanted, Published(tmp_path))
    assert filled.generator == str(tmp_path / "g.pt")
    assert filled.encoders == {"e4e": str(tmp_path / "e.pt")}
    assert filled.directions == {"pose": str(tmp_path / "pose.pt")}
    own = with_published_weights(wanted.with_encoders({"e4e": "mine.pt"}), Published(tmp_path))
    assert own.encoders == {"e4e": "mine.pt"}


def test_a_file_with_another_hash_than_its_domain_gives_is_refused_by_whoever_looks_for_it(tmp_path: Path) -> None:
    for name in ("g.pt", "m.pth", "vgg16-397923af.pth"):
        (tmp_path / name).write_bytes(CONTENT)
    wanted = domain(
        generator={"file": "g.pt", "sha256": "00"}, moco={"file": "m.pth", "sha256": "01"}, lpips__vgg={"file": VGG}
    )
    published, others = (published_of(wanted, Settings(str(tmp_path), other_weights=taken)) for taken in (False, True))
    with pytest.raises(CheckpointError, match=rf"g\.pt has SHA-256 {SHA256[:16]}, and g\.pt is known by 00: put the"):
        with_published_weights(wanted, published)
    with pytest.raises(CheckpointError, match=r"m\.pth is known by 01: .* or set LSAP_OTHER_WEIGHTS=1"):
        published.find("m.pth")
    assert with_published_weights(wanted, others).generator == str(tmp_path / "g.pt") and others.find("m.pth")
    assert {one.state for one in look_for_weights(wanted, published)} == {"another file"}  # VGG's by its name alone
    assert {one.state for one in look_for_weights(wanted, others)} == {"another file, taken"}
    check_weights(wanted, others, wanted.weights)
    with pytest.raises(MissingWeightsError, match=r"g\.pt .*; m\.pth .*; vgg16-397923af\.pth \(lpips vgg\), which has"):
        check_weights(wanted, published, wanted.weights)


def test_what_cannot_be_a_hash_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SHA-256 of g\.pt is 'xyz'"):
        domain(generator={"file": "g.pt", "sha256": "xyz"})


@pytest.mark.parametrize("name", ["face", "car", "church", "wild"])
def test_a_preset_names_its_files_as_the_networks_look_for_them_and_who_offers_them(name: str) -> None:
    weights = load_domain(name).weights
    assert {"generator", "e4e", "lsap_e", "lpips-vgg", "lpips-alex"} <= set(weights)
    for role, file in weights.items():
        if role in LPIPS_TRUNKS:
            assert file.file == LPIPS_TRUNKS[role]
        if role in IDENTITY_FILES:
            assert file.file in IDENTITY_FILES[role]
        assert file.note
        assert len(file.sha256) in (0, 64) or file.file.split(".")[0].endswith(f"-{file.sha256}")
        is_offered = bool(file.offered_by)
        assert bool(file.licence) == is_offered == ("released" not in file.note)
        assert not re.search(r"://|www\.|\.com\b", file.offered_by)  # a project's name, not a host of files
    known = [role for role in weights if role in (*LPIPS_TRUNKS, *IDENTITY_FILES)]
    EvaluationChoice(
        lpips=tuple(role for role in known if role in LPIPS_TRUNKS),
        identity=tuple(role for role in known if role in IDENTITY_FILES),
    )


def test_files_that_domains_share_are_told_the_same_of() -> None:
    by_file: dict[str, set[WeightFile]] = {}
    for name in builtin_domains():
        for file in load_domain(name).weights.values():
            by_file.setdefault(file.file, set()).add(file)
    assert {name: told for name, told in by_file.items() if len(told) > 1} == {}


def test_the_page_of_weights_has_the_table_that_is_made_of_the_domains() -> None:
    page = (Path(__file__).parents[3] / "docs" / "weights.md").read_text(encoding="utf-8")
    made = offered_table(load_domain(name) for name in builtin_domains())
    assert made in page, "docs/weights.md: put what `lsap domain weights --markdown` prints in its table's place"
    (vgg,) = [line for line in made.splitlines() if VGG in line]
    assert "| face, car, church, wild | BSD-3-Clause | 553.4 | 397923af... | pytorch/vision on GitHub |" in vgg
    assert "| - | not known | not known | nobody |" in made


def test_the_domains_of_the_paper_are_built_in() -> None:
    assert {"face", "car", "church", "wild"} <= set(builtin_domains())
    assert load_domain("car").content_box == (64, 448, 0, 512)
    assert [name for name in builtin_domains() if load_domain(name).attributes] == ["digits", "face"]
