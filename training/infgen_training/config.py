"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from infgen_model import PRESETS, DecoderConfig
from infgen_model.config import OF_SPACE, OF_TRUNK

PARTS = ("decoder", "encoder", "trunk", "shared")
PATCH = DecoderConfig.PATCH
FACTOR = 4
"""How many times larger the pictures to learn from are than the picture at the latent's own size."""
HELD_OUT = ("007", "010", "014", "017", "019", "020")
"""Stems of photographs that no run trains on. They are for evaluation, and three of them are the sample latents."""


@dataclass(frozen=True)
class Lesson:
    """The training steps of one enlargement.

    Attributes:
        factor: Factor of the enlargement; 1 for the latent's own size.
        share: Share of the training steps.
        batch: Number of views per step.
        perceptual: Weight of LPIPS.
        adversarial: Weight of the adversary relative to that of LPIPS. Their gradients are scaled to this ratio.
        clean: Share of the steps with sharp pictures (``TrainConfig.sharp``) in which LPIPS and the adversary compare
            with these, too. In the others, they compare with the photographs, where a view has one.
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
        part: The part to train: the ``"decoder"``, the ``"encoder"`` for a finished decoder, the ``"trunk"`` of
            another latent space for a finished model, whose other parts stay as they are, or what the decoders of all
            spaces have ``"shared"``, while their trunks stay as they are.
        latent_space: Name of the latent space to train for: that of the views, or for a trunk that of the teacher.
        latent_channels: Number of channels of that space's latents.
        minutes: Length of the run and of its cosine schedule, in total over all continuations.
        lessons: The training steps of each enlargement. An adversary needs a weight of LPIPS.
        between: Share of the steps at a scale between two enlargements, which needs resampling.
        sharp: Share of the steps above scale 1 that learn from views with sharp pictures, if there are any. The other
            steps learn from photographs, with the pixel loss weighted by ``soft``.
        others: Share of the steps that are of the other latent spaces, which take turns, if the run has any.
        cells: Side in latent cells of the square that is decoded from a view.
        margin: Width in cells of the square's border that the losses ignore, because the decoder lacks the latent
            around the square there.
        crop: Side in pixels of the crop that LPIPS and the adversary see.
        gradient: Weight of L1 between differences of neighbouring pixels, for sharp pictures.
        grid: Weight of errors that are alike in the blocks of pixels that the enlarger makes from each position.
        reduced: Weight of L1 between the reduced picture and the picture that was encoded.
        soft: Weight of L1 between an enlarged picture and a photograph. It is small because L1 averages away the detail
            that the latent does not determine.
        features: For a trunk, share of the run in which it learns the features of the finished model's trunk. After
            that, it learns from pictures.
        round_trip: For the encoder, weight of L1 between a picture and the decode of its own latent.
        adversary_from: Share of the run after which the adversary is used. It starts to learn a little earlier.
        lr: Highest learning rate.
        copied_share: Learning rate of weights copied from a tiny autoencoder, relative to that of the others. It does
            not apply to the trunks of other latent spaces, which learn at ``lr``.
        adversary_lr: Learning rate of the adversary, which is constant.
        warmup: Number of linear warm-up steps, each time the run is continued.
        final: Learning rate at the end, as a share of the highest.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are saved and evaluated.
        noise: Largest standard deviation of the noise added to a decoder's latents, which in use do not come from the
            encoder.
        seed: Seed of weights and batches.
        bfloat16: Whether to use mixed precision, if the device computes in bfloat16.
        compile: Whether to compile the model's larger parts (``torch.compile``), for a GPU.
        save_every: Minutes between checkpoints.
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
    reduced: float = 0.5
    soft: float = 0.15
    features: float = 0.0
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

    def teaches(self, name: str) -> bool:
        """Whether this run trains a parameter of the model."""
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
        if min(shares, default=0) < 0 or sum(shares) <= 0:
            raise ValueError("lessons must have shares of the steps that are not below 0 and not all 0")
        for lesson in self.lessons:
            if not 1 <= lesson.factor <= FACTOR or lesson.batch < 1:
                raise ValueError(
                    f"a lesson must have a factor from 1 to {FACTOR} and a batch of 1 or more, "
                    f"not {lesson.factor} and {lesson.batch}"
                )
            if not 0 <= lesson.clean <= 1:
                raise ValueError(f"a lesson's clean is a share, in [0, 1], not {lesson.clean}")
        if not 0 <= 2 * self.margin < self.cells:
            raise ValueError(f"a margin of {self.margin} cells leaves nothing of {self.cells}")
        for name in ("between", "sharp", "others", "features"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, in [0, 1], not {getattr(self, name)}")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, not {self.minutes}")
