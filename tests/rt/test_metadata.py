"""Pictures carry text: what is written where, what is refused, and what comes from a latent's file."""

import json
import logging
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

import infgen_rt
from infgen_rt.cli.main import main
from infgen_rt.errors import OutputError
from infgen_rt.writers import FORMATS, check_metadata

from . import tiny
from .test_writers import photo, write_image

PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 5}}})
TEXT = {"prompt": PROMPT, "workflow": '{"nodes": []}', "Title": "Grüße, 日本語 <&\"'> 🎨\nsecond line", "A": ""}
MODEL, MAKE, DESCRIPTION = 0x0110, 0x010F, 0x010E


def carried(path: Path) -> dict[str, str]:
    """The text of a file, read by Pillow, tifffile or an XML parser."""
    if path.suffix == ".dzi":
        entries = ElementTree.parse(path).iter("{urn:infgen-rt:metadata}Entry")
        return {entry.attrib["Key"]: entry.attrib["Text"] for entry in entries}
    with Image.open(path) as image:
        if path.suffix == ".png":
            return dict(image.text)  # type: ignore[attr-defined]
        texts = [text for text in image.getexif().values() if isinstance(text, str) and ":" in text]
    # Pillow takes the bytes of EXIF for Latin-1.
    pairs = (text.encode("latin-1").decode().partition(":") for text in texts)
    return {key: text for key, _, text in pairs}


def test_the_picture_of_the_page_has_the_text_that_the_page_states() -> None:
    expected = {"Title": "Singapore's harbour at dusk", "Source": "BuddiesOfBudgie/budgie-backgrounds, CC0-1.0"}
    assert carried(Path(__file__).parents[2] / "docs" / "stream.jpg") == expected


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_carries_text_of_any_language(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, photo(60, 80), 32, metadata=TEXT)
    assert carried(path) == TEXT
    write_image(tmp_path / f"b{suffix}", photo(60, 80), 32)
    assert carried(tmp_path / f"b{suffix}") == {}
    if suffix != ".dzi":
        with Image.open(path) as image, Image.open(tmp_path / f"b{suffix}") as plain:
            assert np.array_equal(np.asarray(image), np.asarray(plain))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".tif"])
def test_prompt_and_workflow_are_in_the_tags_where_comfyui_has_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, photo(20, 30), 32, metadata={"Title": "a", "workflow": "{}", "prompt": PROMPT})
    with Image.open(path) as image:
        tags = image.getexif()
        found = [tags[MODEL], tags[MAKE], tags[DESCRIPTION]]
    assert found == [f"prompt:{PROMPT}", "workflow:{}", "Title:a"]
    if suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].tags["Model"].value == f"prompt:{PROMPT}"


def test_a_png_has_its_text_before_the_pixels_as_ascii_or_utf8(tmp_path: Path) -> None:
    """ComfyUI's page takes each text chunk for UTF-8, and tEXt of Latin-1 would be garbled there."""
    write_image(tmp_path / "a.png", photo(60, 80), 32, metadata={"prompt": PROMPT, "b": "é"})
    data, position, chunks = (tmp_path / "a.png").read_bytes(), 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    kinds = [kind for kind, _ in chunks]
    assert kinds[:4] == [b"IHDR", b"sRGB", b"tEXt", b"iTXt"] and set(kinds[4:]) == {b"IDAT", b"IEND"}
    assert chunks[2][1] == b"prompt\0" + PROMPT.encode()
    assert chunks[3][1] == b"b\0\0\0\0\0" + "é".encode()


@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_text_is_refused_or_can_be_written(text: dict[str, str]) -> None:
    try:
        check_metadata(text)
    except OutputError as error:
        assert "\n" not in str(error)
        return
    for form in FORMATS.values():
        form.with_metadata(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), min_size=1, max_size=90))
def test_keys_are_those_of_png_without_a_colon(key: str) -> None:
    printable = all(32 <= ord(each) <= 126 or ord(each) >= 161 for each in key)
    possible = printable and len(key) <= 79 and ":" not in key and key == key.strip(" ") and "  " not in key
    if possible:
        assert check_metadata({key: "a"}) == {key: "a"}
    else:
        with pytest.raises(OutputError, match="^metadata key .* is not possible: expected 1 to 79"):
            check_metadata({key: "a"})


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"": "a"}, "key '' is not possible"),
        ({"日本": "a"}, "is not possible: expected 1 to 79 printable Latin-1"),
        ({"XML:com.adobe.xmp": "a"}, "is not possible"),
        ({"a\n": "a"}, "is not possible"),
        ({"a" * 10_000: "a"}, re.escape("key 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa... is not possible")),
        ({"a": "b\0c"}, r"'a' has the character U\+0000, which is no text"),
        ({"a": "\ud800"}, r"'a' has the character U\+D800"),
        ({"a": "\x1b[2J"}, r"'a' has the character U\+001B"),
        ({"a": 5}, "'a' is int: expected text"),
        ({3: "a"}, "key 3 is not possible"),
        ({"a": "é" * 2**21, "b": "."}, "metadata of .* is too much: expected 4.0 MiB at most"),
        ({str(number): "" for number in range(101)}, "101 metadata entries are too many: expected 100 at most"),
    ],
)
def test_what_cannot_be_written_is_refused_before_decoding(
    tmp_path: Path, decoder: infgen_rt.Decoder, metadata: dict[str, str], text: str
) -> None:
    steps: list[object] = []
    picture = decoder.picture(tiny.random_latent(4, 4), normalisation="model")
    with pytest.raises(OutputError, match=text):
        picture.save(tmp_path / "a.png", metadata=metadata, progress=steps.append)
    assert not steps and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_as_much_as_is_allowed_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    most = {"prompt": "x" * (2**21), "b": "ü" * (2**20 - 10)}
    if suffix in (".jpg", ".jpeg"):
        with pytest.raises(OutputError, match="JPEG holds 65,533 bytes of metadata at most, and this is 4,194,"):
            write_image(path, photo(20, 30), 32, metadata=most)
        most = {"prompt": "x" * 65_000}
    write_image(path, photo(20, 30), 32, metadata=most)
    assert carried(path) == most


def test_a_format_of_another_package_refuses_text_and_needs_no_change(tmp_path: Path) -> None:
    class Plain(type(FORMATS[".png"])):  # type: ignore[misc]
        name = "Plain"
        with_metadata = infgen_rt.writers.Format.with_metadata

    assert isinstance(Plain().with_metadata({}), Plain)
    with pytest.raises(OutputError, match="Plain keeps no metadata"):
        Plain().with_metadata({"a": "b"})


# The command line.


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file as ComfyUI's SaveLatent writes it."""
    monkeypatch.chdir(tmp_path)
    write_latent({"prompt": PROMPT, "workflow": '{"nodes": []}', "format": "pt", "empty": ""})
    return tmp_path


def write_latent(metadata: dict[str, str]) -> None:
    arrays = {"latent_tensor": tiny.random_latent(4, 6)[None], "latent_format_version_0": np.zeros(0, np.float32)}
    save_file(arrays, "a.latent", metadata)


def command(bundle: Path, *options: str, name: str = "decode") -> list[str]:
    return [name, "a.latent", "-o", "a.png", "--force", "--model", str(bundle), "--normalisation", "model", *options]


def test_the_prompt_and_workflow_of_a_latents_file_go_into_the_picture(comfyui: Path, bundle: Path) -> None:
    assert main(command(bundle)) == 0
    assert carried(Path("a.png")) == {"prompt": PROMPT, "workflow": '{"nodes": []}'}
    assert main(command(bundle, "--metadata", "prompt=mine", "--metadata", "Author=A = B")) == 0
    assert carried(Path("a.png")) == {"workflow": '{"nodes": []}', "prompt": "mine", "Author": "A = B"}
    assert main(command(bundle, "--no-metadata", "--metadata", "a=b")) == 0
    assert carried(Path("a.png")) == {"a": "b"}
    assert main(command(bundle, "--no-metadata")) == 0
    assert carried(Path("a.png")) == {}


def test_every_picture_of_a_batch_gets_the_text(comfyui: Path, bundle: Path) -> None:
    save_file({"latents": np.stack([tiny.random_latent(4, 4)] * 2)}, "a.latent", {"prompt": PROMPT})
    assert main(command(bundle, "--metadata", "a=b")) == 0
    assert [carried(Path(f"a-{number}.png")) for number in (1, 2)] == [{"prompt": PROMPT, "a": "b"}] * 2


def test_a_hostile_header_is_left_out_with_a_warning(
    comfyui: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_latent({"prompt": PROMPT, "XML:com.adobe.xmp": "x", "zero": "a\0b"})
    assert main(command(bundle)) == 0
    assert carried(Path("a.png")) == {"prompt": PROMPT}
    printed = capsys.readouterr().err
    assert "Warning: a part of the latent file's metadata is left out: metadata key 'XML:com.adobe.xmp' is" in printed
    assert printed.count("\n") == 1 and printed.endswith("; and 1 more\n")
    write_latent({"prompt": "x" * 70_000})
    assert main([*command(bundle, "--metadata", "a=b"), "-o", "a.jpg"]) == 0
    assert carried(Path("a.jpg")) == {"a": "b"}
    assert "metadata is left out: 'prompt', because JPEG holds" in capsys.readouterr().err
    # What fits is kept, and both causes are told.
    write_latent({"prompt": PROMPT, "workflow": "x" * 70_000, "XML:com.adobe.xmp": "x"})
    assert main([*command(bundle), "-o", "b.jpg"]) == 0
    assert carried(Path("b.jpg")) == {"prompt": PROMPT}
    printed = capsys.readouterr().err
    assert "is left out: metadata key 'XML:com.adobe.xmp'" in printed and printed.endswith("; and 1 more\n")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--metadata", "author"], "metadata 'author' is not understood: expected KEY=TEXT"),
        (["--metadata", "=a"], "metadata key '' is not possible"),
        (["--metadata", "a=1", "--metadata", "a=2"], "metadata 'a' is given twice"),
        (["--metadata", f"a={'x' * 70_000}", "-o", "a.jpg"], "JPEG holds 65,533 bytes of metadata at most"),
        (["--resume", "--force"], "--resume and --force exclude each other"),
        (["--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
    ],
)
@pytest.mark.parametrize("name", ["decode", "plan"])
def test_bad_options_are_one_line_and_change_nothing(
    comfyui: Path, bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str, name: str
) -> None:
    assert main(command(bundle, *options, name=name)) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and text in printed.err and printed.out == ""
    assert [path.name for path in comfyui.iterdir()] == ["a.latent"]


def test_verbose_prints_what_the_package_logs_and_nothing_otherwise(
    comfyui: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(bundle, "--verbose")) == 0
    printed = capsys.readouterr()
    for text in ("infgen_rt.decoder: opens ", "infgen_rt.picture: planned: stage 1", "decode 2/4", "wrote a.png"):
        assert text in printed.err
    assert printed.out.startswith("a.png: 48x32")
    assert main(command(bundle)) == 0
    assert capsys.readouterr().err == "" and not logging.getLogger("infgen_rt").handlers
