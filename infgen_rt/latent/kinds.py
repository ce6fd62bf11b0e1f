"""Recognises files that are often mistaken for latents by their first bytes, and gives advice for each kind."""

_SAVE = "save the latent with safetensors or numpy.save"
_PASS = "pass what a pipeline returns with output_type='latent'"
# The first bytes of a file, and the message about it.
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", f"is a PNG picture, and not a latent: {_PASS}"),
    (b"\xff\xd8\xff", f"is a JPEG picture, and not a latent: {_PASS}"),
    (b"RIFF", f"is a WebP picture or another RIFF file, and not a latent: {_PASS}"),
    (b"GGUF", f"is a GGUF file of a model's weights, and not a latent: {_PASS}"),
    (b"\x89HDF", f"is an HDF5 file, which is not read: {_SAVE}"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first"),
    (b"version https://git-lfs", "is a Git LFS pointer instead of the file: run git lfs pull"),
    (b"<!DOCTYPE", "is a web page: download the file again"),
    (b"<html", "is a web page: download the file again"),
)
# The first bytes of a pickle of protocol 2 to 5. PyTorch's .pt files were pickles until version 1.6, and some other
# files still are.
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
PICKLE = f"is a PyTorch or Python pickle, which is never loaded because it could run code: {_SAVE}"


def known_kind(data: bytes) -> str | None:
    """The kind of a file that is not a latent, and what to do about it. None if the kind is not known."""
    if not data:
        return "is empty, because the program that wrote it did not finish: save the latent again"
    if data.startswith(_PICKLES):
        return PICKLE
    return next((text for start, text in _KINDS if data[: len(start)].lower() == start.lower()), None)
