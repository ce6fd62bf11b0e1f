"""A VAE for the pipelines of diffusers that decodes with InfGen.

import infgen_rt.diffusers

pipe.vae = infgen_rt.diffusers.InfGenVAE(scale=2)

It needs PyTorch and diffusers: `pip install "infgen-rt[diffusers]"`, with a backend's extra.
"""

from collections.abc import Sequence
from math import inf
from os import PathLike, fspath
from typing import Any

import numpy as np

from infgen_rt.backend.candidates import AUTO, Precision
from infgen_rt.common.arguments import NUMBER, PATH
from infgen_rt.decoder import Decoder
from infgen_rt.errors import InputError
from infgen_rt.latent.spaces import latent_space

try:
    import torch

    # A pipeline that is loaded from a folder looks for the name ModelMixin in this module.
    from diffusers import ModelMixin
    from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.utils.accelerate_utils import apply_forward_hook
except ImportError as error:
    raise ImportError(
        f'infgen_rt.diffusers needs PyTorch and diffusers ({error}): pip install "infgen-rt[diffusers]"'
    ) from error

from infgen_rt.diffusers.configs import VAE, batch_norm, described, space_of_vae
from infgen_rt.diffusers.opened import Opened
from infgen_rt.diffusers.pictures import bands, check_batch, check_pixels, check_plan, picture_options

__all__ = ["InfGenVAE", "space_of_vae"]


class InfGenVAE(ModelMixin, ConfigMixin):
    """A VAE that decodes with InfGen, for any pipeline that takes `AutoencoderKL` or `AutoencoderKLFlux2`.

    The model is opened when the VAE is created. Deep copies share it, and a pickled VAE opens it again where it is
    loaded. The module has no weights in PyTorch. `to` only changes the device and the type of its results.

    Attributes:
        bn: for FLUX.2, a batch norm whose statistics pipelines read. None for the other spaces.
        place: a list with one parameter, which has the device and the type of the results.
        use_tiling: what `enable_tiling` and `disable_tiling` set. It changes nothing, because pictures are always
            decoded in tiles that fit exactly.
        use_slicing: what `enable_slicing` and `disable_slicing` set. It changes nothing, because the pictures of a
            batch are always decoded one after another.

    Args:
        path: as for `infgen_rt.open`.
        space: as for `infgen_rt.open`. `replacing` finds the space of a pipeline's own VAE.
        scale: the size of the picture, relative to that of the VAE's own picture. None for 1, or if `size` is given.
        size: the picture's size, as for `Decoder.picture`, for every latent.
        backend: as for `infgen_rt.open`.
        device: the backend's device, as for `infgen_rt.open`. It need not be the pipeline's.
        precision: as for `infgen_rt.open`.
        threads: as for `infgen_rt.open`.
        memory: as for `infgen_rt.open`, for each picture. The batch that `decode` returns is not included.
        stages: as for `Decoder.picture`.
        max_scale: as for `Decoder.picture`. Infinity may be the text `inf`, as it is saved, because JSON has no number
            for it.
        tile: as for `Decoder.picture`.

    Raises:
        PlanError: the scale, the size or the stages are not possible, or `memory` is not an amount.
        InfGenError: the errors of `infgen_rt.open`.
    """

    config_name = "config.json"  # type: ignore[assignment]
    _internal_dict: dict[str, Any]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        space: str | None = None,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
        backend: str = AUTO,
        device: str | None = None,
        precision: Precision = "fast",
        threads: int | None = None,
        memory: str | int | None = None,
        stages: Sequence[float] | None = None,
        max_scale: float | str | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        largest: Any = inf if max_scale == "inf" else max_scale
        NUMBER.or_none(max_scale=largest)
        self._picture = picture_options(scale, size, stages, largest, tile)
        if largest == inf:
            self.register_to_config(max_scale="inf")  # type: ignore[no-untyped-call]
        PATH.or_none(path=path)
        path = None if path is None else fspath(path)
        runs = {"backend": backend, "device": device, "precision": precision, "threads": threads, "memory": memory}
        self._opened = Opened({"path": path, "space": space, **runs})
        check_plan(self.decoder, self._picture)
        name = self.decoder.manifest.latent_space
        # A saved config names the space, so that it does not depend on the order of the bundle's models.
        saved = {key: _plain(value) for key, value in self._internal_dict.items()} | {"path": path, "space": name}
        self.register_to_config(**saved)  # type: ignore[no-untyped-call]
        self._space = latent_space(name)
        self.bn = batch_norm(self._space)
        # The device and the type of a module are those of its first parameter, which CPU offload moves. The parameter
        # is in a submodule, because offloading moves the batch norm's statistics away from modules with parameters.
        self.place = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1), requires_grad=False)])
        self.use_tiling = self.use_slicing = False

    @classmethod
    def replacing(
        cls, vae: Any, path: str | PathLike[str] | None = None, space: str | None = None, **options: Any
    ) -> "InfGenVAE":
        """A VAE for the same latents as another one, with its device and type: `InfGenVAE.replacing(pipe.vae)`.

        Args:
            vae: the VAE of a pipeline.
            path: as for the class.
            space: as for the class. None for the space that the VAE's config shows.
            options: the other arguments of the class.

        Raises:
            TypeError: `vae` is not a VAE of diffusers.
            LatentError: the latent space of the VAE is not known, and `space` is not given.
            InfGenError: the errors of the class.
        """
        VAE.check(vae=vae)
        made = cls(path, space=space or space_of_vae(vae), **options)
        # A VAE whose weights are offloaded is on the device `meta`, on which nothing can be computed.
        return _moved(made, None if vae.device.type == "meta" else vae.device, vae.dtype)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set an argument, because that would change nothing. Everything else is as for any module."""
        if name in self.__dict__.get("_internal_dict", ()):
            raise AttributeError(f"{name} cannot be changed: make another InfGenVAE with {name}={value!r}")
        super().__setattr__(name, value)

    @property
    def config(self) -> FrozenDict:
        """The arguments, and the values that pipelines read from a VAE's config."""
        return FrozenDict(described(self._space) | self._internal_dict)  # type: ignore[no-untyped-call]

    @property
    def decoder(self) -> Decoder:
        """The opened model. Its `backend` says what runs where."""
        return self._opened.get()

    @apply_forward_hook  # type: ignore[untyped-decorator]
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def decode(
        self, latents: torch.Tensor, return_dict: bool = True, generator: object = None, **ignored: object
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode a batch of latents, one after another.

        Args:
            latents: [N, C, h, w] in the VAE's own normalisation, as pipelines give them.
            return_dict: whether to return an object instead of a tuple.
            generator: ignored, like all other arguments that pipelines give to one VAE or another.
            ignored: see above.

        Returns:
            An object with `sample`, or a tuple of it: [N, 3, H, W] in [-1, 1], on the device and in the type of the
            latents.

        Raises:
            LatentError: the latents are not usable.
            PlanError: the size is not possible for them, or the memory budget is too small.
            DecodeError: decoding failed, or the model is closed.
        """
        check_batch(latents, "latents", f"[N, {self._space.channels}, h, w]")
        pictures = self.decoder.pictures(latents, normalisation="vae", **self._picture)
        width, height = pictures[0].size
        sample = latents.new_empty(len(pictures), 3, height, width)
        for pixels in sample:
            # A picture holds what its tiles are decoded from, so it is let go before the next one is decoded.
            picture = pictures.pop(0)
            for band in bands(picture):
                read = torch.from_numpy(picture.read(band, dtype=np.float32))
                pixels[:, *band.slices] = read.permute(2, 0, 1) * 2 - 1
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def encode(
        self, pixels: torch.Tensor, return_dict: bool = True, **ignored: object
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode a batch of pictures with the encoder of the bundle, whatever the scale is.

        Args:
            pixels: [N, 3, H, W] in [-1, 1]. Both sides are multiples of 8.
            return_dict: whether to return an object instead of a tuple.
            ignored: ignored, as for `decode`.

        Returns:
            An object with `latent_dist`, or a tuple of it. Its `mode()` and `sample()` are the same latents
            [N, C, H/8, W/8] in the VAE's own normalisation, on the device and in the type of the pixels.

        Raises:
            InputError: these are not pixels.
            PlanError: the bundle has no encoder for this latent space, or the size is not possible.
            DecodeError: encoding failed, or the model is closed.
        """
        check_batch(pixels, "pixels", "[N, 3, H, W]")
        check_pixels(pixels)
        images = (pixels.detach().float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        latents = np.stack([self._space.denormalise(self.decoder.encode(image)) for image in images])
        mean = torch.from_numpy(latents).to(pixels.device, pixels.dtype)
        spread = torch.cat((mean, torch.zeros_like(mean)), dim=1)
        distribution = DiagonalGaussianDistribution(spread, deterministic=True)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode pictures and decode them again. Arguments and errors are those of `encode` and `decode`."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the model, which this module's copies use too. Nothing can be decoded afterwards."""
        self._opened.close()

    def enable_tiling(self, use_tiling: bool = True, **ignored: object) -> None:
        """Do nothing but note it; see `use_tiling`."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Do nothing but note it; see `use_tiling`."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Do nothing but note it; see `use_slicing`."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Do nothing but note it; see `use_slicing`."""
        self.use_slicing = False

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> None:
        """Save the arguments. The weights stay in the package, or in the bundle at `path`.

        Args:
            save_directory: the folder.
            options: `push_to_hub` and those that go with it. The others of diffusers are about weights and ignored.
        """
        self.save_config(save_directory, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: Any) -> "InfGenVAE":
        """Open what `save_pretrained` saved.

        Args:
            pretrained_model_name_or_path: the folder, or a repository.
            options: arguments of the class that are to differ, `dtype`, and those of diffusers that say where the
                config is. The others of diffusers are about weights and ignored.

        Raises:
            InputError: the config is that of another VAE.
            InfGenError: the errors of the class.
        """
        for given, other in (("size", "scale"), ("scale", "size")):
            if options.get(given) is not None:
                options.setdefault(other, None)  # the saved one is replaced too
        dtypes = [options.pop(name, None) for name in ("dtype", "torch_dtype")]
        config, options = cls.load_config(pretrained_model_name_or_path, return_unused_kwargs=True, **options)
        if (found := config.get("_class_name")) != cls.__name__:
            raise InputError(
                f"{pretrained_model_name_or_path} has the config of {found}, expected {cls.__name__}: "
                "InfGenVAE.replacing takes a VAE of another class"
            )
        made: InfGenVAE = cls.from_config(config, **options)  # type: ignore[no-untyped-call]
        return _moved(made, None, next((dtype for dtype in dtypes if dtype is not None), None))


def _plain(value: Any) -> Any:
    """An argument as JSON can hold it: numbers and arrays of NumPy and PyTorch as those of Python."""
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _moved(vae: InfGenVAE, device: torch.device | None, dtype: torch.dtype | None) -> InfGenVAE:
    """A module on a device and in a type. The method of diffusers warns of modules that are kept in float32."""
    return torch.nn.Module.to(vae, device, dtype)  # type: ignore[call-overload, no-any-return]
