"""Everything that decides how a run goes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from infgen_export.model import PRESETS

OPTIMIZERS = ("muon", "adamw")
PARTS = ("all", "decoder", "encoder")
PERCEPTUAL = ("lpips", "teacher", "ms_ssim", "fourier")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        preset: Model preset a new run starts from.
        part: What learns: ``"all"``, the ``"decoder"`` alone, or the ``"encoder"`` alone, for a decoder that is done.
        learns: How the names of the parameters begin that learn, of those of the part; all of them by default.
        latent_space: Name of the space that the teacher's latents are in.
        latent_channels: Their channels.
        warm_start: A new run's trunk starts as the first layers of the teacher's decoder, its encoder as the last ones
            of the teacher's encoder.
        trunk_rest: Steps in which the trunk does not learn yet, while the untrained rest has only noise to teach it.
        copied_share: Learning rates of trunk and encoder over those of the rest: what was copied needs smaller steps.
        steps: Length of the run and of its cosine schedule.
        warmup: Steps of linear warm-up.
        optimizer: ``"muon"`` (orthogonalised momentum on hidden matrices and kernels, AdamW on the rest) or ``"adamw"``
            (as published) on everything.
        lr: Highest AdamW learning rate.
        muon_lr: Highest Muon learning rate.
        final: Learning rates at the end, as a share of the highest.
        weight_decay: Of matrices and kernels under AdamW.
        clip: Largest gradient norm.
        perceptual: Which perceptual distance: ``"lpips"`` as published, or a substitute that needs no download:
            ``"teacher"`` (features of the teacher's encoder), ``"ms_ssim"`` or ``"fourier"``.
        perceptual_weight: Its weight beside L1; 0.1 as published, 0 leaves it out.
        pyramid_weight: Weight of L1 between reduced pictures, which is of colour and shade; 0 leaves it out.
        adversarial_weight: Weight of a PatchGAN's verdict; 0.1 as published, 0 leaves it out.
        adversary_lr: Learning rate of the PatchGAN, constant; at 1e-3 it does not learn to tell tiles apart.
        round_trip_weight: On the encoder's turns, weight of L1 between a picture and what its own latent decodes to.
        ema: Decay of the averaged weights, which are what is saved and evaluated.
        seed: Of weights, views and batches.
        shapes: Latent shapes (rows, columns) of the cached views.
        views: Cached views.
        max_reduction: Largest reduction of a view, so the largest scale with true detail.
        drawn: Pictures drawn at random that join the photographs (``infgen_training.drawn``).
        recoloured: Share of the views whose channels change places and whose saturation rises: colours that few
            photographs have.
        scales: Smallest and largest scale; the published stages are up to 2, then up to 4.
        cells: Latent cells a batch at scale 1.
        tile: Tokens a side of a decoded tile at scale 1.
        native_share: Share of batches at exactly scale 1.
        latent_noise: Largest standard deviation of noise on latents.
        encoder_every: The encoder learns on every n-th step, when it is not alone.
        bfloat16: Mixed precision, where the device computes in bfloat16.
        compile: Compiles the model's larger parts (``torch.compile``). On two CPU cores that takes two to seven minutes
            at the start of every run, for steps of 0.98 times the seconds: not worth it there. On a GPU it has not been
            measured. Losses differ by rounding from those of a run without.
        loaders: Threads that make batches; every processor by default. The batches are the same for any number.
        save_every: Steps between checkpoints.
        exclude: Photographs (file stems) kept out of training, those of the sample latents.
    """

    preset: str = "edge"
    part: str = "all"
    learns: tuple[str, ...] = ()
    latent_space: str = "flux2"
    latent_channels: int = 32
    warm_start: bool = True
    trunk_rest: int = 200
    copied_share: float = 0.1
    steps: int = 10_000
    warmup: int = 200
    optimizer: str = "muon"
    lr: float = 1e-3
    muon_lr: float = 0.007
    final: float = 0.01
    weight_decay: float = 0.01
    clip: float = 1.0
    perceptual: str = "teacher"
    perceptual_weight: float = 0.0
    pyramid_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversary_lr: float = 1e-4
    round_trip_weight: float = 0.0
    ema: float = 0.998
    seed: int = 0
    shapes: tuple[tuple[int, int], ...] = (
        *((32, 32),) * 4,
        (24, 40),
        (40, 24),
        (48, 64),
        (64, 64),
        (64, 96),
        (128, 128),
    )
    views: int = 4_000
    max_reduction: float = 4.0
    drawn: int = 0
    recoloured: float = 0.5
    scales: tuple[float, float] = (0.5, 4.0)
    cells: int = 6 * 1024
    tile: int = 32
    native_share: float = 0.3
    latent_noise: float = 0.03
    encoder_every: int = 4
    bfloat16: bool = True
    compile: bool = False
    loaders: int = os.cpu_count() or 1
    save_every: int = 250
    exclude: tuple[str, ...] = ("007", "010", "014", "017", "019", "020")

    def teaches(self, name: str) -> bool:
        """Whether a parameter of the model learns in this run."""
        part = self.part == "all" or name.startswith("encode.") == (self.part == "encoder")
        return part and (not self.learns or name.startswith(self.learns))

    def __post_init__(self) -> None:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be two rising positive numbers, not {self.scales}")
        if self.loaders < 1:
            raise ValueError(f"loaders must be 1 or more, not {self.loaders}")
        named = (
            ("preset", self.preset, PRESETS),
            ("part", self.part, PARTS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("perceptual", self.perceptual, PERCEPTUAL),
        )
        for name, value, known in named:
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: expected one of {', '.join(known)}")
