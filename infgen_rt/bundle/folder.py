"""Opens bundles. A bundle is a folder or a zip with the graphs of a model and the manifest that describes them."""

import hashlib
import mmap
import os
import stat
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from infgen_rt.bundle.assembly import PARTS, Assembly
from infgen_rt.bundle.graphs import Content
from infgen_rt.bundle.manifest import MANIFEST, FormatError, Manifest, Recipe
from infgen_rt.bundle.several import read_models
from infgen_rt.common.arguments import PATH, TEXT
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.files import check_possible
from infgen_rt.common.memory import MIB, format_bytes
from infgen_rt.common.remedies import PACKAGE, is_frozen, reinstalling
from infgen_rt.common.shortages import MORE_MEMORY
from infgen_rt.errors import BundleError, one_line, reason

DEFAULT_BUNDLE = Path(__file__).parents[1] / "model"
# This is many times the size of the largest manifest. Without a limit, a hostile file could fill the memory.
_LARGEST_MANIFEST = 64 * MIB


class Bundle:
    """An opened bundle. A file is read, and its digest is checked, when it is requested.

    Attributes:
        path: the folder or the zip.
        manifest: the description of the model that was chosen.
        spaces: the latent spaces that the bundle has a model for, in its order.

    Examples:
        >>> import infgen_rt
        >>> bundle = infgen_rt.Bundle.open()
        >>> bundle.manifest.latent_space
        'flux2'
    """

    def __init__(self, path: Path, manifest: Manifest, spaces: tuple[str, ...] = ()) -> None:
        self.path = path
        # Graphs are read when they are needed, when the working directory may be another one.
        self._root = Path(os.path.abspath(path))
        self.manifest = manifest
        self.spaces = spaces or (manifest.latent_space,)
        self._kept: dict[str, Content] = {}

    @classmethod
    def open(cls, path: str | Path | None = None, space: str | None = None) -> "Bundle":
        """Open a bundle and check that all of its files exist and have the right length.

        Args:
            path: a folder or a zip with a `manifest.json`. None for the bundle that ships in the package.
            space: the latent space of the model to choose. None for the bundle's first model.

        Raises:
            BundleError: there is no bundle, it is damaged, or it has no model for the space.
        """
        PATH.or_none(path=path)
        TEXT.or_none(space=space)
        if path is None and not DEFAULT_BUNDLE.is_dir():
            raise BundleError(f"this installation ships no model: {_remedy()}")
        root = Path(path) if path is not None else DEFAULT_BUNDLE
        length = _lengths(root, [MANIFEST]).get(MANIFEST)
        if length is None:
            raise BundleError(
                f"{root} is not a bundle: it has no {MANIFEST}; pass the folder or zip that has one at its top"
            )
        if length > _LARGEST_MANIFEST:
            raise BundleError(
                f"{root} is not a bundle: its {MANIFEST} is larger than {format_bytes(_LARGEST_MANIFEST)}, the most "
                "that is read; pass another folder or zip"
            )
        text = _read(root, MANIFEST, length)
        try:
            models = read_models(text)
        except FormatError as error:
            raise BundleError(f"{root}: {error}") from None
        except BundleError as error:
            raise BundleError(f"{root}: {error}; {_again(root)}") from None
        listed = {name: info for each in models for name, info in each.files.items()}
        lengths = _lengths(root, listed)
        for name, info in listed.items():
            if lengths.get(name) != info.bytes:
                found = f"has {lengths[name]:,} bytes" if name in lengths else "is missing"
                raise BundleError(f"{root} is damaged: {name} {found}, expected {info.bytes:,} bytes; {_again(root)}")
        spaces = tuple(each.latent_space for each in models)
        if space is not None and space not in spaces:
            raise BundleError(
                f"{root} has no model for {space} latents: it has one for {', '.join(spaces)}; pass another bundle's "
                "path (--model), or train a model for them (training/README.md)"
            )
        return cls(root, models[spaces.index(space) if space else 0], spaces)

    def read_graph(self, recipe: Recipe, graph: str) -> dict[str, Content]:
        """Read the files that a graph needs.

        Args:
            recipe: the recipe of the graph.
            graph: the name of the graph.

        Returns:
            The contents by name. If the graph is a folder, the names are those in the folder. Among them are the files
            of weights that the graph refers to. Files that are stored as parts of these are put together.

        Raises:
            BundleError: a file cannot be read, or its digest does not match the manifest.
        """
        path = recipe.graphs[graph]
        files: dict[str, Content] = {
            name.removeprefix(f"{path}/"): self.read(name) for name in self.manifest.files_of(path)
        }
        weights = {name: self._weights(name) for name in recipe.weights_of(graph)}
        for name in [name for name in files if name.endswith(PARTS)]:
            files[name.removesuffix(PARTS)] = self._assembled(f"{path}/{name}", files.pop(name), weights)
        return files | weights

    def check_graph(self, recipe: Recipe, graph: str) -> None:
        """Check the files that a graph needs, for a graph that is read later. The errors are those of `read_graph`."""
        for name in self.manifest.files_of(recipe.graphs[graph]):
            self.read(name)
        for name in recipe.weights_of(graph):
            self._weights(name)

    def _assembled(self, name: str, parts: Content, weights: Mapping[str, Content]) -> bytes:
        """Put a file together, given the name and the content of the file that tells how, and one file of weights."""
        try:
            (stored,) = weights.values()
            return Assembly.from_json(bytes(parts)).make(stored)
        except MemoryError:
            raise BundleError(f"there is too little memory to read {name} of {self.path}: {MORE_MEMORY}") from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise_callers(error)
            text = f"{self.path} is damaged: {name} does not fit its weights: {one_line(error)}; {_again(self.path)}"
            raise BundleError(text) from None

    def _weights(self, name: str) -> Content:
        """The content of a file that many graphs need. It is mapped into memory if possible, and checked only once."""
        if name not in self._kept:
            self._kept[name] = self._checked(name, _map(self._root, name, self.manifest.files[name].bytes))
        return self._kept[name]

    def let_go(self) -> None:
        """Release the files of weights, which are read again if a graph needs them."""
        self._kept.clear()

    def read(self, name: str) -> bytes:
        """Read a file that the manifest lists.

        Raises:
            BundleError: it cannot be read, or its digest does not match the manifest.
        """
        content = _read(self._root, name, self.manifest.files[name].bytes)
        self._checked(name, content)
        return content

    def _checked(self, name: str, content: Content) -> Content:
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{self.path} is damaged: the sha256 of {name} does not match; {_again(self.path)}")
        return content


def _remedy() -> str:
    if is_frozen():
        return "the app was built without the data files of infgen_rt, which must be collected; or pass a bundle's path"
    return "pass the path of a bundle"


def _again(root: Path) -> str:
    """What to do about a damaged bundle."""
    return reinstalling((PACKAGE,)) if root == DEFAULT_BUNDLE else "copy, download or export it again"


def _lengths(root: Path, names: Collection[str]) -> Mapping[str, int]:
    """The lengths in bytes of those files that a bundle has, of the given names with forward slashes."""
    check_possible(root, BundleError)
    try:
        kind = root.stat().st_mode
        if stat.S_ISDIR(kind):
            # The folder may have other files, which are ignored.
            return {name: (root / name).stat().st_size for name in names if (root / name).is_file()}
        if not stat.S_ISREG(kind):  # opening a named pipe would wait for a program that writes to it
            raise BundleError(f"{root} is a pipe, a socket or a device: expected a bundle, a folder or a zip")
        with zipfile.ZipFile(root) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename in names]
        lengths = {entry.filename: entry.file_size for entry in entries}
        if len(lengths) < len(entries):
            # Programs disagree about which of them counts.
            twin = next(name for name in lengths if sum(entry.filename == name for entry in entries) > 1)
            raise BundleError(f"{root} is damaged: it has several files {twin}; {_again(root)}")
        return lengths
    except BundleError:
        raise
    except FileNotFoundError:
        raise BundleError(f"{root} does not exist: expected a bundle, a folder or a zip with a {MANIFEST}") from None
    except OSError as error:
        raise_callers(error)
        raise BundleError(f"{root} cannot be read: {reason(error)}") from None
    except MemoryError:
        raise BundleError(f"there is too little memory to read {root}: {MORE_MEMORY}") from None
    # zipfile raises various exceptions for files that are damaged or not zips.
    except Exception as error:
        raise_callers(error)
        text = one_line(error)
        raise BundleError(f"{root} is not a bundle, a folder or a zip with a {MANIFEST}: {text}") from None


def _map(root: Path, name: str, length: int) -> Content:
    """The content of a file that is not empty. It is mapped into memory, unless it is in a zip."""
    if not root.is_dir():
        return _read(root, name, length)
    try:
        with (root / name).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # the file system does not support mapping
        raise_callers(error)
        return _read(root, name, length)


def _read(root: Path, name: str, length: int) -> bytes:
    """The content of a file. An entry of a zip is unpacked up to the length that it should have, and no further."""
    try:
        if root.is_dir():
            return (root / name).read_bytes()
        with zipfile.ZipFile(root) as archive, archive.open(name) as entry:
            return entry.read(length)
    except OSError as error:
        raise_callers(error)
        raise BundleError(f"{root}: {name} cannot be read: {reason(error)}") from None
    except MemoryError:
        raise BundleError(f"there is too little memory to read {name} of {root}: {MORE_MEMORY}") from None
    # zipfile raises various exceptions for damaged files, including zlib.error.
    except Exception as error:
        raise_callers(error)
        raise BundleError(f"{root} is damaged: {name} cannot be read: {one_line(error)}; {_again(root)}") from None
