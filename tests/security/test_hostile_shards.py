"""Shards that somebody made to harm: tars that lead out or grow, tables that promise or unpack to more than memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import BadImageError, SourceError
from tasks.sources.source import SourceItem, open_source

DATA = b"an image"


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for entry, data in members:
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = len(DATA), link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size, link
    return entry


def header(name: str, kind: bytes, size: int) -> bytes:
    """One block, whatever it promises."""
    return member(name, kind, size).tobuf(tarfile.GNU_FORMAT)


GOOD = (member("good.png"), DATA)


def after(hostile: bytes) -> bytes:
    """A good member, and then the hostile part."""
    good = tar_of(GOOD)[:1024]
    return good + hostile + bytes(1024)


def found(path: Path, **options: int) -> dict[str, bytes | str]:
    """Bytes, or the reason why there are none, of every image."""
    read: dict[str, bytes | str] = {}
    with open_source(str(path), **options) as source:  # type: ignore[arg-type]
        for item in source.items():
            try:
                read[item.image_id] = source.read(SourceItem(item.image_id, item.uri))  # as a worker does
            except BadImageError as error:
                read[item.image_id] = error.reason
    return read


LINKS_AND_NAMES = {
    "a name above": (member("../../evil.png"), "../../evil.png"),
    "an absolute name": (member("/etc/evil.png"), "/etc/evil.png"),
    "a Windows name": (member("C:\\evil.png"), "C:\\evil.png"),
    "a name that climbs inside": (member("a/../../evil.png"), "a/../../evil.png"),
    "a link to a file of the machine": (member("evil.png", tarfile.SYMTYPE, 0, "/etc/passwd"), "evil.png"),
    "a hard link": (member("evil.png", tarfile.LNKTYPE, 0, "good.png"), "evil.png"),
    "a hard link with a size": (member("evil.png", tarfile.LNKTYPE, 0, "../x.png"), "evil.png"),
    "a device": (member("evil.png", tarfile.CHRTYPE, 0), "evil.png"),
    "a block device": (member("evil.png", tarfile.BLKTYPE, 0), "evil.png"),
    "a pipe": (member("evil.png", tarfile.FIFOTYPE, 0), "evil.png"),
    "a kind that nobody knows": (member("evil.png", b"Q", 0), "evil.png"),
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", LINKS_AND_NAMES)
def test_a_member_of_a_tar_harms_only_itself(kind: str, form: int, tmp_path: Path) -> None:
    entry, name = LINKS_AND_NAMES[kind]
    data = tar_of((entry, DATA if entry.isreg() and entry.size else b""), GOOD, form=form)
    (tmp_path / "x.tar").write_bytes(data)
    assert found(tmp_path / "x.tar") == {name: "unsafe_name", "good.png": DATA}
    assert sorted(os.listdir(tmp_path)) == ["x.tar"]


def test_names_of_pax_headers_pass_the_same_guard(tmp_path: Path) -> None:
    entry = member("innocent.png")
    entry.pax_headers = {"path": "../evil.png", "size": "8"}
    (tmp_path / "x.tar").write_bytes(tar_of((entry, DATA), GOOD, form=tarfile.PAX_FORMAT))
    assert found(tmp_path / "x.tar") == {"../evil.png": "unsafe_name", "good.png": DATA}


def gnu_sparse() -> bytes:
    block = bytearray(header("sparse.png", tarfile.GNUTYPE_SPARSE, len(DATA)))
    block[386:410] = b"00000000000\0" + b"00000000010\0"  # one piece
    block[483:495] = b"77777777777\0"  # 8 GiB when unpacked
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + DATA.ljust(512, b"\0")


def test_sparse_members_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(after(gnu_sparse()))
    assert found(tmp_path / "x.tar") == {"good.png": DATA, "sparse.png": "unsafe_name"}
    entry = member("modern.png")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    data = b"1\n0\n8\n".ljust(512, b"\0") + DATA
    entry.size = len(data)
    (tmp_path / "x.tar").write_bytes(tar_of((entry, data), GOOD, form=tarfile.PAX_FORMAT))
    assert found(tmp_path / "x.tar") == {"good.png": DATA, "modern.png": "unsafe_name"}


PAX = tarfile.XHDTYPE
TARS = {
    "a long name of 8 GiB": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 8 * 2**30),
    "a pax header of 8 GiB": header("x", PAX, 8 * 2**30),
    "a global pax header of 8 GiB": header("x", tarfile.XGLTYPE, 8 * 2**30),
    "headers of headers without an end": 3000 * (header("x", tarfile.GNUTYPE_LONGNAME, 1) + b"a".ljust(512, b"\0")),
    "pax headers of headers": 3000 * (header("x", PAX, 11) + b"11 a=bcdef\n".ljust(512, b"\0")),
    "a pax record that is longer than all": header("x", PAX, 12) + b"999999 a=b\n\n".ljust(512, b"\0"),
    "a pax record of length 0": header("x", PAX, 12) + b"0 a=bcdefgh\n".ljust(512, b"\0"),
    "a pax size that is negative": header("x", PAX, 13) + b"13 size=-512\n".ljust(512, b"\0") + tar_of(GOOD)[:512],
    "a negative size": header("evil.png", tarfile.REGTYPE, -1024),
    "a size of 8 EiB": header("evil.png", tarfile.REGTYPE, 2**63 - 1),
    "a size beyond all numbers": header("evil.png", tarfile.REGTYPE, 2**80),
    "a sparse map without an end": 2 * gnu_sparse()[:482] + b"\1" * 548,
}


@pytest.mark.parametrize("kind", TARS)
def test_a_tar_that_lies_ends_where_it_does(kind: str, tmp_path: Path) -> None:
    """The good member is read, what cannot be told is told, nothing grows and nothing goes round in circles."""
    (tmp_path / "x.tar").write_bytes(after(TARS[kind]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = found(tmp_path / "x.tar")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert read.pop("good.png") == DATA
    assert set(read.values()) == {"corrupt"} and "unread part" in read


def test_a_member_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """All of it is there, as far as the file system tells."""
    large = 6 * 2**30
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header("large.png", tarfile.REGTYPE, large))
        file.seek(large, os.SEEK_CUR)
        file.write(tar_of(GOOD))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found(tmp_path / "x.tar") == {"large.png": "too_large", "good.png": DATA}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_an_address_does_not_make_a_shard_out_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret.tar").write_bytes(b"secret" * 1000)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/x.tar").write_bytes(tar_of(GOOD))
    with open_source(str(tmp_path / "set")) as source:
        for address in ("secret.tar#0+6", "set/../secret.tar#0+6", "set#0+6", "set/x.tar#0+99999999999999"):
            with pytest.raises(BadImageError) as refusal:
                source.read(SourceItem("x", f"file://{tmp_path}/{address}"))
            assert refusal.value.reason in ("unsafe_name", "unreadable", "too_large")


# --- Parquet -----------------------------------------------------------------------------------------------------

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_of(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def images(*rows: tuple[bytes | None, str | None]) -> pa.Table:
    return pa.table({"image": pa.array([{"bytes": data, "path": path} for data, path in rows], IMAGE)})


@pytest.mark.parametrize("path", ["../evil.png", "/etc/evil.png", "C:\\evil.png", "a/../../evil.png", "nul\0.png"])
def test_paths_in_a_table_pass_the_guard_of_names(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_of(images((DATA, path), (None, "/etc/passwd"), (DATA, "good.png"))))
    assert found(tmp_path / "x.parquet") == {path: "unsafe_name", "/etc/passwd": "unsafe_name", "good.png": DATA}


def many_times(value: bytes | str) -> pa.Array:
    """One value of some megabytes in 2,000 rows: many gigabytes, in a file of some KB."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([value]))


def with_names_of_megabytes() -> pa.Table:
    content = pa.array([DATA] * 2000, pa.binary())
    return pa.table({"image": pa.StructArray.from_arrays([content, many_times("n" * 2**22)], names=["bytes", "path"])})


BOMBS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "an image": (lambda: pa.table({"image": many_times(b"\x89PNG" + bytes(4 * 2**20))}), "read"),
    "an image above the limit": (lambda: pa.table({"image": many_times(b"\x89PNG" + bytes(10 * 2**20))}), "too_large"),
    "a name": (with_names_of_megabytes, "read"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_table_does_not_unpack_to_more_than_memory(kind: str, tmp_path: Path) -> None:
    """In a process of its own, whose memory is counted."""
    make, expected = BOMBS[kind]
    data = parquet_of(make(), store_schema=False)
    assert len(data) < 2**20
    (tmp_path / "x.parquet").write_bytes(data)
    script = (
        "import itertools, resource, sys\n"
        "from tasks.errors import BadImageError\n"
        "from tasks.sources.source import open_source\n"
        "found = set()\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "with open_source(sys.argv[1], max_bytes=8 * 2**20) as source:\n"
        "    for item in itertools.islice(source.items(), 0, None, 400):\n"
        "        try:\n"
        "            source.read(item)\n"
        "            found.add('read')\n"
        "        except BadImageError as error:\n"
        "            found.add(error.reason)\n"
        "print(*found, peak() - before)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.parquet")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *reasons, megabytes = told.stdout.split()
    assert reasons == [expected]
    assert int(megabytes) < 600


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def footer(depth: int, num_rows: int) -> bytes:
    """A file of a footer alone: a schema of so many groups in one another, and a promise of rows."""
    group = b"\x35\x02\x18\x01s\x15\x02\0"  # required, named s, of one child
    leaf = b"\x15\x0c\x25\x02\x18\x01b\0"  # bytes, named b
    schema = b"\xfc" + varint(depth + 1) + depth * group + leaf
    metadata = b"\x15\x02\x19" + schema + b"\x16" + varint(2 * num_rows) + b"\x19\x0c\0"
    return b"PAR1" + metadata + struct.pack("<I", len(metadata)) + b"PAR1"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (footer(100_000, 0), "too deeply nested"),
        (footer(1, 10**15), "x.parquet"),
        (b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1", "not a complete Parquet file"),
        (b"PAR1" + b"\xff" * 100 + struct.pack("<I", 100) + b"PAR1", "not a complete Parquet file"),
        (b"PARE" + b"\0" * 100 + struct.pack("<I", 100) + b"PARE", "not a complete Parquet file"),
    ],
)
def test_a_footer_that_lies_is_refused(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=match) as refusal, open_source(str(tmp_path / "x.parquet")) as source:
        source.describe()
    assert not refusal.value.is_transient


def test_more_rows_than_any_shard_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.parquet_images.MAX_ROWS", 2)
    (tmp_path / "x.parquet").write_bytes(parquet_of(images(*[(DATA, None)] * 3)))
    with pytest.raises(SourceError, match="tells of 3 rows, at most 2"):
        open_source(str(tmp_path / "x.parquet"))


def test_what_a_table_says_of_its_columns_may_be_anything(tmp_path: Path) -> None:
    for told in (
        b"[" * 100_000,
        b"{}",
        b'{"info": {"features": [1]}}',
        b'{"info": {"features": {"image": 5}}}',
        b"\xff",
    ):
        table = images((DATA, "a.png")).replace_schema_metadata({b"huggingface": told})
        (tmp_path / "x.parquet").write_bytes(parquet_of(table))
        assert found(tmp_path / "x.parquet") == {"a.png": DATA}
