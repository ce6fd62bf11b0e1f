"""The loaded graphs of one model, run one at a time so that the memory plan holds."""

from collections.abc import Mapping
from dataclasses import replace
from threading import Lock

from .backends import Options, Session, choose_backend
from .bundle import Bundle
from .errors import DecodeError
from .pixels import FloatArray


class Engine:
    """Runs prefill and decode; serves several threads.

    Attributes:
        manifest: the model's manifest.
        recipe: the recipe whose graphs are loaded.
        backend: the backend's name.
        device: what it runs on.
    """

    def __init__(self, bundle: Bundle, backend: str, options: Options) -> None:
        chosen, self.recipe = choose_backend(backend, bundle.manifest)
        self.manifest = bundle.manifest
        self.backend, self.device = chosen.name, chosen.device
        # Prefill runs once a picture: its working memory is better given to decode.
        wanted = {"prefill": replace(options, keep_memory=False), "decode": options}
        self._sessions = {
            kind: chosen.load(bundle.read_graph(self.recipe.graphs[kind]), option) for kind, option in wanted.items()
        }
        # A backend uses all its threads for one run; two at once would only double the memory.
        self._lock = Lock()

    def prefill(self, latent: FloatArray) -> FloatArray:
        """Latent [C, h, w] to context [1, D, h, w]."""
        expected = (1, self.manifest.context_channels, *latent.shape[1:])
        return self._run("prefill", {"latent": latent[None]}, "context", expected)

    def decode(self, inputs: Mapping[str, FloatArray]) -> FloatArray:
        """Run decode; `inputs` as in the graph contract.

        Returns:
            float32 [3, patch * tokens down, patch * tokens across], about [0, 1], not clamped.
        """
        patch = self.manifest.patch
        expected = (1, 3, patch * len(inputs["token_y"]), patch * len(inputs["token_x"]))
        image: FloatArray = self._run("decode", inputs, "image", expected)[0]
        return image

    def close(self) -> None:
        """Free the graphs, after the run in progress."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _run(self, kind: str, inputs: Mapping[str, FloatArray], output: str, expected: tuple[int, ...]) -> FloatArray:
        with self._lock:
            session: Session | None = self._sessions.get(kind)
            if session is None:
                raise DecodeError("the decoder is closed: read what you need before close()")
            results = session.run(inputs)
        shapes = {name: result.shape for name, result in results.items()}
        if shapes != {output: expected}:
            raise DecodeError(f"{kind} gave {shapes}, expected {output} {expected}: is the model damaged?")
        return results[output]
