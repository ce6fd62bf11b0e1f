"""The nodes, in ComfyUI's V3 schema. Other modules do their work."""

from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from infgen_rt.backend.protocol import installed_backends

from .decoders import AUTO, SPACES, Model
from .host import Bar, interruptible
from .outputs import ENDINGS, metadata_of, place_for, shown
from .previews import with_previews

_CATEGORY = "InfGen"
_Model = io.Custom("INFGEN_MODEL")
_SIZE = "A size such as 4k, 3840x2160, x2160 or 2x. If empty, the scale is used."


def _size_inputs() -> list[Any]:
    """The inputs for the size of a picture."""
    return [
        io.Float.Input(
            "scale",
            default=2.0,
            min=0.1,
            max=64.0,
            step=0.1,
            tooltip="Size of the picture, in multiples of the latent's own size.",
        ),
        io.String.Input("size", default="", tooltip=_SIZE),
    ]


def _stages_input() -> Any:
    """The input for the number of stages. It is optional, because older workflows do not have it."""
    return io.Combo.Input(
        "stages",
        options=[AUTO, "one"],
        default=AUTO,
        optional=True,
        tooltip="auto: two stages above 5 times the latent's own size, with more detail. one: faster.",
    )


class InfGenLoad(io.ComfyNode):
    """Opens a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows of the node."""
        return io.Schema(
            node_id="InfGenLoad",
            display_name="InfGen Load",
            category=_CATEGORY,
            description="Opens an InfGen decoder, which makes a picture of any size from a latent.",
            inputs=[
                io.String.Input(
                    "bundle", default="", tooltip="Path of a bundle. If empty, the one that ships is used."
                ),
                io.Combo.Input(
                    "space",
                    options=[AUTO, *SPACES],
                    default=AUTO,
                    tooltip="ComfyUI's name of the latent format. auto: inferred from the latent's channels.",
                ),
                io.Combo.Input("backend", options=[AUTO, *installed_backends(), "cuda"], default=AUTO),
                io.Combo.Input(
                    "precision",
                    options=["fast", "exact"],
                    default="fast",
                    tooltip="exact: float32 throughout. fast: the precision that the device is fastest in.",
                ),
                io.String.Input(
                    "device",
                    default="",
                    tooltip="A device of the backend, such as cuda:1. If empty, the fastest is used.",
                ),
                io.String.Input(
                    "memory",
                    default="",
                    tooltip="Memory limit for decoding, such as 2GiB. If empty, at most 4 GiB are used.",
                ),
            ],
            outputs=[_Model.Output(display_name="infgen")],
        )

    @classmethod
    def execute(cls, bundle: str, space: str, backend: str, precision: str, device: str, memory: str) -> io.NodeOutput:
        """Make the model, and open it if its latent space is known."""
        texts = {"path": bundle.strip(), "device": device.strip(), "memory": memory.strip()}
        given: dict[str, Any] = {name: text or None for name, text in texts.items()}
        model = Model(space=SPACES.get(space), backend=backend, precision=precision, **given)
        model.check()
        return io.NodeOutput(model)


class InfGenDecode(io.ComfyNode):
    """Decodes a latent into an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows of the node."""
        return io.Schema(
            node_id="InfGenDecode",
            display_name="InfGen Decode",
            category=_CATEGORY,
            description="Decodes a latent at any size. The image is held in memory. For large images, use InfGen Save.",
            inputs=[_Model.Input("infgen"), io.Latent.Input("samples"), *_size_inputs(), _stages_input()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls, infgen: Model, samples: dict[str, Any], scale: float, size: str, stages: str = AUTO
    ) -> io.NodeOutput:
        """Decode the batch to an IMAGE, float32 [B, H, W, 3] in [0, 1]."""
        pictures = infgen.pictures(samples, size.strip() or float(scale), one_stage=stages == "one")
        width, height = pictures[0].size
        images, bar = torch.empty(len(pictures), height, width, 3), Bar(len(pictures))
        for number, image in enumerate(images):
            # A picture holds what its tiles are decoded from, so it is let go before the next one is decoded.
            picture = pictures.pop(0)
            with interruptible() as cancelled:
                pixels = image.numpy()
                picture.read(dtype=np.float32, out=pixels, progress=bar.of(number), cancel=cancelled)
        return io.NodeOutput(images)


class InfGenSave(io.ComfyNode):
    """Decodes a latent into files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows of the node."""
        return io.Schema(
            node_id="InfGenSave",
            display_name="InfGen Save",
            category=_CATEGORY,
            description="Decodes a latent straight into a file, so that the picture may be larger than memory.",
            inputs=[
                _Model.Input("infgen"),
                io.Latent.Input("samples"),
                io.String.Input("filename_prefix", default="InfGen", tooltip="As for Save Image."),
                *_size_inputs(),
                io.Combo.Input("format", options=list(ENDINGS), default="png"),
                io.Combo.Input(
                    "bits",
                    options=["8", "16"],
                    default="8",
                    tooltip="Bits per channel. 16 is possible for png and tiff.",
                ),
                _stages_input(),
            ],
            outputs=[io.String.Output(display_name="paths")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        infgen: Model,
        samples: dict[str, Any],
        filename_prefix: str,
        scale: float,
        size: str,
        format: str,
        bits: str,
        stages: str = AUTO,
    ) -> io.NodeOutput:
        """Write a file for each latent of the batch. All of them are checked before the first is decoded."""
        pictures = infgen.pictures(samples, size.strip() or float(scale), one_stage=stages == "one")
        place = place_for(filename_prefix, pictures[0].size, folder_paths.get_output_directory())
        paths = [place.file(number, ENDINGS[format]) for number in range(len(pictures))]
        writing: dict[str, Any] = {
            "bits": int(bits),
            "metadata": metadata_of(cls.hidden.prompt, cls.hidden.extra_pnginfo),
        }
        for picture, path in zip(pictures, paths, strict=True):
            picture.check_save(path, **writing)
        bar, images = Bar(len(pictures)), []
        for number, path in enumerate(paths):
            picture = pictures.pop(0)
            with interruptible() as cancelled:
                picture.save(path, **writing, progress=bar.of(number), cancel=cancelled)
            images.append(shown(picture, path, place))
        return io.NodeOutput("\n".join(map(str, paths)), ui={"images": images})


class InfGenPreview(io.ComfyNode):
    """Shows what a sampler is making, in previews."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows of the node."""
        return io.Schema(
            node_id="InfGenPreview",
            display_name="InfGen Preview",
            category=_CATEGORY,
            description="Samplers of the returned model show previews that InfGen decodes.",
            inputs=[
                io.Model.Input("model"),
                _Model.Input("infgen"),
                io.Int.Input("longest", default=512, min=64, max=2048, tooltip="The preview's longer side in pixels."),
                io.Int.Input(
                    "every", default=2, min=1, max=1000, tooltip="Number of steps from one preview to the next."
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, infgen: Model, longest: int, every: int) -> io.NodeOutput:
        """Wrap the samplers of a copy of the model."""
        return io.NodeOutput(with_previews(model, infgen, longest, every))
