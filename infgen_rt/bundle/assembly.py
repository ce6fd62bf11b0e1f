"""Files that a bundle does not store, because they consist of parts of its file of weights.

Instead of such a file, the bundle has a small JSON file of the same name and the ending `.parts.json`, which tells how
the file is put together. Core ML's packages are stored so, because their numbers are those of the other targets.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from infgen_rt.bundle.graphs import Content
from infgen_rt.common.schema import parse

PARTS = ".parts.json"
"""The ending that is added to the name of a file to name the JSON file that tells how it is put together."""


@dataclass(frozen=True)
class Assembly:
    """How a file is put together. Bytes that are in no part are zero.

    Attributes:
        sha256: the SHA-256 of the file, in hexadecimal.
        length: its length in bytes.
        literals: parts that are given here: their position in the file, and their bytes in hexadecimal.
        copies: parts that are copied from the file of weights: their position in the file, their position in the file
            of weights, and their length, all in bytes.
    """

    sha256: str
    length: int
    literals: tuple[tuple[int, str], ...]
    copies: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, content: bytes, stored: Mapping[int, tuple[int, int]]) -> "Assembly":
        """How a file can be put together.

        Args:
            content: the content of the file.
            stored: the parts that the file of weights has: their position in that file and their length, by their
                position in the content. They do not overlap.
        """
        copies = tuple((at, start, count) for at, (start, count) in sorted(stored.items()))
        rest = bytearray(content)
        for at, _, count in copies:
            rest[at : at + count] = bytes(count)
        # A run ends at eight zeros, so that what the file has between two parts is one literal.
        literals = tuple((run.start(), run[0].hex()) for run in re.finditer(rb"[^\0](?:\0{0,7}[^\0])*", rest))
        return cls(hashlib.sha256(content).hexdigest(), len(content), literals, copies)

    @classmethod
    def from_json(cls, text: bytes) -> "Assembly":
        """Parse the JSON file.

        Raises:
            ValueError: it is not JSON, or a value is missing or has the wrong type.
            RecursionError: it is nested too deeply.
        """
        return parse(cls, json.loads(text), "assembly")

    def to_json(self) -> str:
        """The content of the JSON file."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    def make(self, weights: Content) -> bytes:
        """Put the file together.

        Args:
            weights: the content of the file of weights.

        Raises:
            ValueError: the result does not have the right SHA-256, or a part or the length is not possible.
            MemoryError: the file is too large for the memory.
            OverflowError: the file is larger than any memory.
        """
        # An honest file has at most the weights and the literals, with some zeros between them.
        if self.length > 2 * (len(weights) + sum(len(text) for _, text in self.literals)):
            raise ValueError(f"{self.length:,} bytes are more than its parts have")
        ends = [(at, at + count, self.length) for at, _, count in self.copies]
        ends += [(start, start + count, len(weights)) for _, start, count in self.copies]
        if not all(0 <= first <= last <= length for first, last, length in ends):
            raise ValueError("a part reaches beyond the end of its file")
        made = bytearray(self.length)
        for at, text in self.literals:
            literal = bytes.fromhex(text)
            made[at : at + len(literal)] = literal
        for at, start, count in self.copies:
            made[at : at + count] = weights[start : start + count]
        if hashlib.sha256(made).hexdigest() != self.sha256:
            raise ValueError("the result does not match its sha256")
        return bytes(made)
