"""Zips and folders with odd entries: a bundle is read as it is meant, or refused before anything is allocated."""

import json
import os
import shutil
import socket
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.bundle.assembly import Assembly
from infgen_rt.common.memory import peak_memory
from infgen_rt.errors import BundleError

from . import tiny

MANIFEST, DECODE = "manifest.json", "onnx-fp32/decode.onnx"
Entries = list[tuple[str | zipfile.ZipInfo, bytes]]
LATENT = tiny.random_latent(5, 5)
_GROWTH = 2**28
"""More than opening the tiny model takes, in bytes, and far less than what the files here claim to have."""
_MANY = 64
posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")


@pytest.fixture
def entries(bundle: Path) -> Entries:
    return [(file.relative_to(bundle).as_posix(), file.read_bytes()) for file in bundle.rglob("*.*")]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def zip_path(tmp_path: Path) -> Path:
    return tmp_path / "bundle.zip"


def write(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path.read_bytes()


def read(path: Path) -> np.ndarray:
    with infgen_rt.open(path, "onnxruntime", memory="256MiB") as decoder:
        return decoder.picture(LATENT, normalisation="model").read()


def special(name: str, mode: int, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    """An entry of the kind that `mode` has on Unix."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info, content


def renamed(entries: Entries, old: str, *new: tuple[str | zipfile.ZipInfo, bytes]) -> Entries:
    return [each for each in entries if each[0] != old] + list(new)


def in_headers(content: bytes, local: int, central: int, value: bytes) -> bytes:
    """Replace bytes at these places of every entry's two headers."""
    changed = bytearray(content)
    for mark, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = -1
        while (at := changed.find(mark, at + 1)) >= 0:
            changed[at + offset : at + offset + len(value)] = value
    return bytes(changed)


ADDED = {
    "absolute": ("/etc/infgen-odd", b"1"),
    "outside": ("../../infgen-odd", b"1"),
    "backslashes": ("..\\..\\infgen-odd", b"1"),
    "drive": ("C:/infgen-odd", b"1"),
    "other capitals": (DECODE.upper(), b"not the graph"),
    "a link": special("link", stat.S_IFLNK | 0o777, b"/etc/passwd"),
    "a pipe": special("pipe", stat.S_IFIFO | 0o666, b""),
    "a folder": special("empty/", stat.S_IFDIR | 0o755, b""),
}


@pytest.mark.parametrize("name", ADDED)
def test_entries_that_the_manifest_does_not_list_are_not_looked_at(
    bundle: Path, entries: Entries, zip_path: Path, name: str
) -> None:
    write(zip_path, [*entries, ADDED[name]])
    assert np.array_equal(read(zip_path), read(bundle))
    assert sorted(each.name for each in zip_path.parent.iterdir()) == [zip_path.name]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_of_python_is_read(bundle: Path, entries: Entries, zip_path: Path, method: int) -> None:
    write(zip_path, entries, method)
    assert np.array_equal(read(zip_path), read(bundle))


def test_large_sizes_of_zip64_are_read(bundle: Path, entries: Entries, zip_path: Path) -> None:
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert np.array_equal(read(zip_path), read(bundle))


LISTED: dict[str, tuple[Callable[[Entries], Entries], str]] = {
    "twice, the same": (lambda given: [*given, (DECODE, dict(given)[DECODE])], f"has several files {DECODE}"),
    "twice, another": (lambda given: [*given, (DECODE, b"x")], f"has several files {DECODE}"),
    "two manifests": (lambda given: [(MANIFEST, b"{}"), *given], f"has several files {MANIFEST}"),
    "a link": (
        lambda given: renamed(given, DECODE, special(DECODE, stat.S_IFLNK | 0o777, b"/etc/passwd")),
        "has 11 bytes, expected",
    ),
    "a folder": (
        lambda given: renamed(given, DECODE, special(f"{DECODE}/", stat.S_IFDIR | 0o755, b"")),
        "decode.onnx is missing",
    ),
    "capitals": (lambda given: renamed(given, DECODE, (DECODE.upper(), dict(given)[DECODE])), "decode.onnx is missing"),
    "backslashes": (
        lambda given: renamed(given, DECODE, (DECODE.replace("/", "\\"), dict(given)[DECODE])),
        "decode.onnx is missing",
    ),
}


# Python warns when such a zip is written.
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", LISTED)
def test_an_odd_entry_in_place_of_a_listed_file_is_refused(entries: Entries, zip_path: Path, name: str) -> None:
    change, text = LISTED[name]
    write(zip_path, change(entries))
    with pytest.raises(BundleError, match=text):
        infgen_rt.open(zip_path)


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "encrypted": (lambda content: in_headers(content, 6, 8, b"\1"), "is encrypted"),
    "another method": (lambda content: in_headers(content, 8, 10, struct.pack("<H", 99)), "method is not supported"),
    "cut": (lambda content: content[: len(content) // 2], "is not a zip file"),
    "cut in the directory": (lambda content: content[:-60], "is not a zip file"),
    "without a part of the directory": (
        lambda content: content.replace(content[content.find(b"PK\1\2") :][10:40], b"", 1),
        "is not a bundle",
    ),
    "declares 4 GB": (lambda content: in_headers(content, 22, 24, struct.pack("<I", 2**32 - 2)), "is larger than"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_zip_that_cannot_be_read_is_refused_without_allocating(entries: Entries, zip_path: Path, name: str) -> None:
    change, text = DAMAGED[name]
    zip_path.write_bytes(change(write(zip_path, entries)))
    before = peak()
    with pytest.raises(BundleError, match=f"(?i){text}"):
        infgen_rt.open(zip_path)
    assert peak() - before < _GROWTH


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("name", [MANIFEST, DECODE])
def test_a_small_zip_that_unpacks_to_very_much_is_not_unpacked(
    entries: Entries, zip_path: Path, name: str, honest: bool
) -> None:
    content, press = dict(entries)[name], zlib.compressobj(wbits=-15)
    first = press.compress(content) + press.flush(zlib.Z_FULL_FLUSH)
    repeated = press.compress(b" " * 2**24) + press.flush(zlib.Z_FULL_FLUSH)
    packed = first + _MANY * repeated + press.flush()
    last = zipfile.ZipInfo(name)
    changed = bytearray(write(zip_path, [*renamed(entries, name), (last, packed)]))
    # The entry was stored as it is. Its headers now tell how it is packed, and the length with or without the rest.
    length = len(content) + (_MANY * 2**24 if honest else 0)
    for at in (changed.rindex(b"PK\3\4") + 8, changed.rindex(b"PK\1\2") + 10):
        struct.pack_into("<H", changed, at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", changed, at + 6, zlib.crc32(content))
        struct.pack_into("<I", changed, at + 14, length)
    zip_path.write_bytes(changed)
    before = peak()
    if honest:
        with pytest.raises(BundleError, match="is larger than" if name == MANIFEST else "bytes, expected"):
            infgen_rt.open(zip_path)
    else:
        infgen_rt.open(zip_path).close()
    assert peak() - before < _GROWTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'"{DECODE}": {{"sha256": "{"0" * 64}", "bytes": 1}}, ', "is listed twice"),
        (f'"../{DECODE}": {{"sha256": "{"0" * 64}", "bytes": 1}}, ', "does not stay inside the bundle"),
        (f'"/etc/passwd": {{"sha256": "{"0" * 64}", "bytes": 1}}, ', "does not stay inside the bundle"),
    ],
)
def test_a_manifest_lists_each_file_once_and_none_outside(copy: Path, text: str, message: str) -> None:
    manifest = json.dumps(json.loads((copy / MANIFEST).read_text()))
    (copy / MANIFEST).write_text(manifest.replace('"files": {', '"files": {' + text, 1))
    with pytest.raises(BundleError, match=message):
        infgen_rt.open(copy)


def bound_socket(path: Path) -> None:
    # The name of a socket is limited to about 100 bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


PLACED: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": bound_socket,
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@posix
@pytest.mark.parametrize("name", PLACED)
def test_what_is_no_file_in_place_of_one_is_refused_at_once(copy: Path, name: str) -> None:
    (copy / DECODE).unlink()
    PLACED[name](copy / DECODE)
    with pytest.raises(BundleError, match="decode.onnx is missing"):
        infgen_rt.open(copy)
    (copy / MANIFEST).unlink()
    PLACED[name](copy / MANIFEST)
    with pytest.raises(BundleError, match="has no manifest.json"):
        infgen_rt.open(copy)


@posix
def test_other_things_in_the_folder_are_not_looked_at(bundle: Path, copy: Path) -> None:
    for name, place in PLACED.items():
        place(copy / name.replace(" ", "-"))
    (copy / "around").symlink_to(".")
    assert np.array_equal(read(copy), read(bundle))


@posix
def test_a_link_to_the_right_content_is_as_good_as_a_file(bundle: Path, copy: Path) -> None:
    (copy / DECODE).unlink()
    (copy / DECODE).symlink_to(bundle / DECODE)
    assert np.array_equal(read(copy), read(bundle))


@posix
@pytest.mark.parametrize("name", ["a pipe", "a socket", "a link to a device"])
def test_what_is_neither_a_folder_nor_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    PLACED[name](tmp_path / "bundle")
    with pytest.raises(BundleError, match="is a pipe, a socket or a device"):
        infgen_rt.open(tmp_path / "bundle")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [MANIFEST, DECODE])
def test_an_unreadable_file_is_named(copy: Path, name: str) -> None:
    (copy / name).chmod(0)
    with pytest.raises(BundleError, match=f"{name} cannot be read: Permission denied"):
        infgen_rt.open(copy)


@pytest.mark.parametrize(
    "assembly",
    [
        Assembly("0" * 64, 10**12, (), ()),
        Assembly("0" * 64, 8, (), ((2**40, 0, 8),)),
        Assembly("0" * 64, 8, (), ((0, -4, 4),)),
        Assembly("0" * 64, 8, (), ((0, 12, 8),)),
    ],
)
def test_a_file_of_parts_is_not_allocated_before_its_parts_fit(assembly: Assembly) -> None:
    with pytest.raises(ValueError, match="more than its parts have|beyond the end"):
        assembly.make(bytes(16))


def peak() -> int:
    """The peak memory of this process in bytes."""
    return peak_memory() or 0


def test_the_working_directory_may_change(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    with infgen_rt.open(copy.name, "onnxruntime") as decoder:
        picture = decoder.picture(tiny.random_latent(4, 4), normalisation="model")
        monkeypatch.chdir(tmp_path / ".." if copy.parent == tmp_path else tmp_path)
        assert picture.read().shape == (32, 32, 3)


@pytest.mark.parametrize("number", [10**400, float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize(
    "place",
    [
        ("latent_channels",),
        ("context_channels",),
        ("patch",),
        ("scale_range", 0),
        ("scale_range", 1),
        ("halo", "cells"),
    ],
)
def test_a_number_that_is_none_or_too_large_is_refused(copy: Path, place: tuple[Any, ...], number: float) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    part = manifest["models"][0] if "models" in manifest else manifest
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = number
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="too large|is not finite|expected int"):
        infgen_rt.open(copy, "onnxruntime")


@pytest.mark.parametrize("version", [0, -1, "6", [6], {}, True])
def test_a_format_that_is_no_number_is_no_newer_one(copy: Path, version: object) -> None:
    manifest = json.loads((copy / "manifest.json").read_text()) | {"format": version}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="whose format is a number from 1: pass another one"):
        infgen_rt.open(copy, "onnxruntime")
