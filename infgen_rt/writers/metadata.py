"""Text that pictures carry, such as ComfyUI's prompt and workflow: its rules, and its form in EXIF and TIFF."""

import re
import struct
from collections.abc import Mapping

from infgen_rt.common.memory import MIB, format_bytes
from infgen_rt.errors import OutputError

Metadata = Mapping[str, str]
"""Text under keys. One set of rules holds for all formats, so that a file can be converted into each other one."""

MAX_BYTES = 4 * MIB
MAX_ENTRIES = 100
# PNG's keywords: printable Latin-1, with single spaces inside. In EXIF, a colon ends the key. XMP's keyword has one.
_KEY = re.compile(r"(?=.{1,79}\Z)[!-9;-~\u00a1-\u00ff]+(?: [!-9;-~\u00a1-\u00ff]+)*")
# Characters that XML can hold, which are all but most control characters, halves of surrogate pairs and two others.
_FORBIDDEN = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST_SHOWN = 40

# Tags of TIFF, which are also EXIF's. ComfyUI stores `KEY:TEXT` in them, and reads such text from any tag.
_MODEL, _MAKE, _DESCRIPTION = 0x0110, 0x010F, 0x010E
_OWN_TAGS = {"prompt": _MODEL, "workflow": _MAKE}
# Tags that TIFF leaves to anybody.
_FREE_TAGS = range(65_000, 65_536)
_ASCII = 2
_ENTRY = struct.Struct("<HHII")


def check_metadata(metadata: Metadata) -> dict[str, str]:
    """Check that text can be written in every format.

    Args:
        metadata: keys of 1 to 79 printable Latin-1 characters, and text of any language. A key has no colon, and no
            space at its ends or next to another.

    Returns:
        The same as a dictionary.

    Raises:
        OutputError: a key or a text is not possible, or there is too much.
    """
    for key, text in metadata.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise OutputError(
                f"metadata key {_shown(key)} is not possible: expected 1 to 79 printable Latin-1 characters, with no "
                "colon, and with single spaces inside only"
            )
        if not isinstance(text, str):
            raise OutputError(f"metadata {key!r} is {type(text).__name__}: expected text (str), as json.dumps makes it")
        if wrong := _FORBIDDEN.search(text):
            raise OutputError(
                f"metadata {key!r} has the character U+{ord(wrong[0]):04X}, which is no text: remove it, or encode the "
                "bytes as base64"
            )
    if len(metadata) > MAX_ENTRIES:
        raise OutputError(f"{len(metadata)} metadata entries are too many: expected {MAX_ENTRIES} at most")
    size = sum(len(key.encode()) + len(text.encode()) for key, text in metadata.items())
    if size > MAX_BYTES:
        raise OutputError(
            f"metadata of {format_bytes(size)} is too much: expected {format_bytes(MAX_BYTES)} at most for all entries"
        )
    return dict(metadata)


def text_tags(metadata: Metadata) -> dict[int, bytes]:
    """The tags of TIFF and EXIF that hold text, in rising order.

    Returns:
        `KEY:TEXT` in UTF-8 for each tag. `prompt` is in Model and `workflow` in Make, where ComfyUI writes them. The
        first other entry is in ImageDescription, and the rest is in tags from 65000 on, which belong to nobody.
    """
    free = iter((_DESCRIPTION, *_FREE_TAGS))
    tags = {_OWN_TAGS[key] if key in _OWN_TAGS else next(free): f"{key}:{text}" for key, text in metadata.items()}
    return {tag: text.encode() for tag, text in sorted(tags.items())}


def exif_of(metadata: Metadata) -> bytes:
    """EXIF data that holds `text_tags`, without the marker that JPEG puts before it."""
    tags = text_tags(metadata)
    directory, texts = [], b""
    # The header is followed by the count, the entries, the offset of the next directory, and the texts.
    start = 8 + 2 + len(tags) * _ENTRY.size + 4
    for tag, text in tags.items():
        value = text + b"\0"
        # A value of up to four bytes is in the entry itself.
        place = int.from_bytes(value, "little") if len(value) <= 4 else start + len(texts)
        directory.append(_ENTRY.pack(tag, _ASCII, len(value), place))
        # Values begin at even places.
        texts += value + b"\0" * (len(value) % 2) if len(value) > 4 else b""
    return b"".join((b"II*\0", struct.pack("<IH", 8, len(tags)), *directory, bytes(4), texts))


def _shown(key: object) -> str:
    """A key for a message, which is cut if it is long."""
    text = repr(key)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
