"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from infgen_model import PRESETS, DecoderConfig
from infgen_model.config import OF_SPACE, OF_TRUNK

PARTS = ("decoder", "encoder", "trunk", "shared", "largest")
PATCH = DecoderConfig.PATCH
FACTOR = 4
"""The highest scale of training. Photographs and sharp pictures are this many times as large as the encoded picture."""
LEAST_CROP = 32
"""Smallest side, in pixels, of a picture that VGG16 can compare."""
HELD_OUT = ("007", "010", "014", "017", "019", "020")
"""File names, without endings, of the photographs kept for evaluation. The sample latents are made from three."""


@dataclass(frozen=True)
class Lesson:
    """Settings of the training steps that teach one enlargement.

    Attributes:
        factor: Factor of the enlargement, from 1 to 4. 1 is the latent's own size.
        share: Share of the training steps, relative to the sum of the shares of all lessons.
        batch: Number of views per step.
        perceptual: Weight of LPIPS. 0 leaves out both LPIPS and the adversary.
        adversarial: Weight of the adversary relative to LPIPS. The adversarial loss is scaled so that the norms of the
            two gradients have this ratio.
        clean: Share, among the steps with sharp pictures (``TrainConfig.sharp``), in which LPIPS and the adversary also
            compare with the sharp pictures. In the other steps, they compare with the photographs if all views of the
            batch have one.
    """

    factor: int
    share: float
    batch: int
    perceptual: float
    adversarial: float
    clean: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        preset: Model preset that a new run starts from.
        part: The part to train. All other parts stay as they are. ``"decoder"`` is the whole decoder. ``"encoder"`` is
            the encoder of a finished decoder. ``"trunk"`` adds the trunk of another latent space to a finished model.
            ``"shared"`` is what the decoders of all latent spaces have in common, which is all but their trunks.
            ``"largest"`` is what only the largest enlargement uses: its last convolutions and layers. The rest of the
            decoder then computes every view only once (``infgen_training.largest``), so a step takes a fraction of the
            time. Such a run learns at this one scale only.
        latent_space: Name of the latent space to train for. For a trunk, it is the space of the teacher. Otherwise, it
            is the space of the views.
        latent_channels: Number of channels of that space's latents.
        minutes: Total length of the run and of its cosine schedule in minutes, including all continuations.
        lessons: The settings for each enlargement.
        between: Share of the steps above scale 1 whose scale is between two enlargements, where the decoder resamples.
        sharp: Share of the steps above scale 1 that learn from views with sharp pictures, if there are such views. The
            other steps learn from photographs, and their pixel loss has the weight ``soft``.
        others: Share of the steps in which a model of another latent space learns, if the run has such models. One of
            them is chosen at random in each of these steps.
        cells: Side, in latent cells, of the square of a view that is decoded.
        margin: Width, in cells, of the square's border that the losses ignore. The decoder does not see the latent
            outside the square, so the border differs from that of a whole picture.
        crop: Side, in pixels, of the crop that LPIPS and the adversary see.
        gradient: Weight of the L1 distance between differences of neighbouring pixels. It is not used with photographs
            above scale 1.
        grid: Weight of the loss against visible grids (``losses.grid_distance``). The enlarger makes one block of
            pixels from each position, and an error that all blocks have in common shows as a grid.
        steps: Weight of the loss against steps along straight edges (``losses.step_distance``).
        crisp: Amount by which the edges of sharp pictures are made steeper before a model learns from them
            (``losses.crisp``).
        reduced: Weight of the L1 distance between the decoded picture, reduced to scale 1, and the picture that was
            encoded.
        soft: Weight of the L1 distance between an enlarged picture and a photograph. It is small because L1 averages
            away the detail that the latent does not determine.
        features: For a trunk, the share of the run in which it learns to reproduce the features of the finished model's
            trunk. In the rest of the run, it learns from pictures.
        sharpen: If above 0, the run learns nothing but the pictures of the model that it starts from, sharpened
            (``losses.sharpened``). This is the amount at scale 4. It decreases linearly to 0 at scale 1. The views then
            only give the latents.
        round_trip: For the encoder, the weight of the L1 distance between a picture and the same picture after encoding
            and decoding.
        adversary_from: Share of the run after which the adversarial loss is used. The adversary starts to learn a
            little earlier.
        lr: Highest learning rate.
        copied_share: Learning rate of the weights that were copied from a tiny autoencoder, as a share of ``lr``. It
            does not apply to the trunks of other latent spaces, which learn at ``lr``.
        adversary_lr: Learning rate of the adversary, which is constant.
        warmup: Number of steps of linear warm-up. The warm-up is repeated whenever the run is continued.
        final: Learning rate at the end, as a share of the highest.
        clip: Gradient norm above which gradients are scaled down.
        ema: Decay of the averaged weights, which are saved and evaluated.
        noise: Largest standard deviation of the noise that is added to the latents when a decoder learns. The decoder
            becomes robust to latents that no encoder made, such as those of a diffusion model.
        seed: Seed for the initial weights and the batches.
        bfloat16: Whether to use mixed precision, if the device computes in bfloat16.
        compile: Whether to compile the model's larger parts with ``torch.compile``. This is meant for GPUs.
        save_every: Minutes between checkpoints.

    Raises:
        ValueError: A field is outside its range, or names an unknown preset or part.
    """

    preset: str = "edge"
    part: str = "decoder"
    latent_space: str = "flux2"
    latent_channels: int = 32
    minutes: float = 90.0
    lessons: tuple[Lesson, ...] = (
        Lesson(4, 0.62, 2, 0.7, 0.6),
        Lesson(2, 0.13, 3, 0.5, 0.5),
        Lesson(1, 0.25, 4, 1.0, 0.4),
    )
    between: float = 0.2
    sharp: float = 0.75
    others: float = 0.5
    cells: int = 16
    margin: int = 1
    crop: int = 224
    gradient: float = 0.7
    grid: float = 2.0
    steps: float = 0.0
    crisp: float = 0.0
    reduced: float = 0.5
    soft: float = 0.15
    features: float = 0.0
    sharpen: float = 0.0
    round_trip: float = 5.0
    adversary_from: float = 0.35
    lr: float = 2e-4
    copied_share: float = 0.2
    adversary_lr: float = 2e-4
    warmup: int = 50
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.997
    noise: float = 0.03
    seed: int = 0
    bfloat16: bool = True
    compile: bool = False
    save_every: float = 5.0

    def teaches(self, name: str, model: DecoderConfig) -> bool:
        """Whether this run trains a parameter, by its name, of a model with this config."""
        if self.part == "largest":
            return name.startswith(model.of_largest)
        if self.part == "trunk":
            return name.startswith(OF_TRUNK)
        if self.part == "shared":
            return not name.startswith(OF_SPACE)
        return name.startswith("encode.") == (self.part == "encoder")

    def __post_init__(self) -> None:
        for name, value, known in (("preset", self.preset, PRESETS), ("part", self.part, PARTS)):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: expected one of {', '.join(known)}")
        shares = [lesson.share for lesson in self.lessons]
        if min(shares, default=0) < 0 or not 0 < sum(shares) < inf:
            raise ValueError("lessons must have shares of the steps that are not below 0 and not all 0")
        for lesson in self.lessons:
            if not 1 <= lesson.factor <= FACTOR or lesson.batch < 1:
                raise ValueError(
                    f"a lesson must have a factor from 1 to {FACTOR} and a batch of 1 or more, "
                    f"not {lesson.factor} and {lesson.batch}"
                )
            if not (0 <= lesson.perceptual < inf and 0 <= lesson.adversarial < inf):
                raise ValueError(
                    "a lesson's weights must be 0 or above and finite, not "
                    f"{lesson.perceptual} and {lesson.adversarial}"
                )
            if not 0 <= lesson.clean <= 1:
                raise ValueError(f"a lesson's clean is a share, in [0, 1], not {lesson.clean}")
        for name in ("lr", "clip", "minutes"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in (
            *("gradient", "grid", "steps", "crisp", "reduced", "soft", "sharpen", "round_trip", "adversary_from"),
            *("copied_share", "adversary_lr", "warmup", "noise", "seed", "save_every"),
        ):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be 0 or above and finite, not {getattr(self, name)}")
        if self.crop < LEAST_CROP:
            raise ValueError(f"crop must be {LEAST_CROP} or more, the least that LPIPS can see, not {self.crop}")
        if not 0 <= 2 * self.margin < self.cells:
            raise ValueError(f"a margin of {self.margin} cells leaves nothing of {self.cells}")
        for name in ("between", "sharp", "others", "features", "final", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, in [0, 1], not {getattr(self, name)}")
        if self.sharpen and self.part not in ("decoder", "shared"):
            raise ValueError(f"sharpen is for the parts decoder and shared, not for {self.part}")
        taught = {lesson.factor for lesson in self.lessons if lesson.share}
        if self.part == "largest" and (taught != {FACTOR} or self.between or self.sharpen):
            raise ValueError(
                f"the part largest learns at scale {FACTOR} only: give lessons of factor {FACTOR}, and between=0 and "
                "sharpen=0"
            )
