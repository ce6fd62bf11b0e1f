"""Text that is stored in pictures, such as ComfyUI's prompt and workflow: its rules, and its form in EXIF and TIFF."""

import re
import struct
from collections.abc import Mapping

from infgen_rt.common.memory import MIB, format_bytes
from infgen_rt.errors import OutputError

Metadata = Mapping[str, str]
"""Text by key. The same rules apply to all formats, so that a file can be converted to every other format."""

MAX_BYTES = 4 * MIB
MAX_ENTRIES = 100
# The keywords of PNG are printable Latin-1, with single spaces inside. A colon is not allowed, because it ends the key
# in EXIF. PNG's own keyword for XMP has a colon, and is therefore not possible.
_KEY = re.compile(r"(?=.{1,79}\Z)[!-9;-~\u00a1-\u00ff]+(?: [!-9;-~\u00a1-\u00ff]+)*")
# The characters that XML cannot hold: most control characters, halves of surrogate pairs, U+FFFE and U+FFFF.
_FORBIDDEN = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST_SHOWN = 40

# Tags of TIFF and EXIF. ComfyUI stores `KEY:TEXT` in them, and reads such text from any tag.
_MODEL, _MAKE, _DESCRIPTION = 0x0110, 0x010F, 0x010E
_OWN_TAGS = {"prompt": _MODEL, "workflow": _MAKE}
# Tags that TIFF reserves for private use.
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
        first other entry is in ImageDescription, and the rest is in tags from 65000 on, which are for private use.
    """
    free = iter((_DESCRIPTION, *_FREE_TAGS))
    tags = {_OWN_TAGS[key] if key in _OWN_TAGS else next(free): f"{key}:{text}" for key, text in metadata.items()}
    return {tag: text.encode() for tag, text in sorted(tags.items())}


def exif_of(metadata: Metadata) -> bytes:
    """EXIF data with the tags of `text_tags`, without the marker that precedes it in JPEG."""
    tags = text_tags(metadata)
    directory, texts = [], b""
    # The header is followed by the count, the entries, the offset of the next directory, and the texts.
    start = 8 + 2 + len(tags) * _ENTRY.size + 4
    for tag, text in tags.items():
        value = text + b"\0"
        # A value of up to four bytes is in the entry itself.
        place = int.from_bytes(value, "little") if len(value) <= 4 else start + len(texts)
        directory.append(_ENTRY.pack(tag, _ASCII, len(value), place))
        # Every value begins at an even offset.
        texts += value + b"\0" * (len(value) % 2) if len(value) > 4 else b""
    return b"".join((b"II*\0", struct.pack("<IH", 8, len(tags)), *directory, bytes(4), texts))


def _shown(key: object) -> str:
    """A key for a message. A long key is cut."""
    text = repr(key)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
