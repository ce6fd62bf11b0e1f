"""Everything that decides how a run goes."""

from __future__ import annotations

from dataclasses import dataclass

from infgen_model import PRESETS, DecoderConfig

PARTS = ("decoder", "encoder")
PATCH = DecoderConfig.PATCH
FACTOR = 4
"""How much larger than the latent's own picture the pictures to learn from are."""
HELD_OUT = ("007", "010", "014", "017", "019", "020")
"""Stems of photographs that no run learns from: they measure, and three of them are the sample latents."""


@dataclass(frozen=True)
class Lesson:
    """What the steps of one enlargement are like.

    Attributes:
        factor: Of the enlargement; 1 for the latent's own size.
        share: Of the steps.
        batch: Views per step.
        perceptual: Weight of LPIPS.
        adversarial: Weight of the adversary, over that of LPIPS: their gradients are brought to that ratio.
    """

    factor: int
    share: float
    batch: int
    perceptual: float
    adversarial: float


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        preset: Model preset a new run starts from.
        part: What learns: the ``"decoder"``, or the ``"encoder"`` for a decoder that is done.
        latent_space: Name of the space that the views' latents are in.
        latent_channels: Their channels.
        minutes: Length of the run and of its cosine schedule, over all the times that it is continued.
        lessons: What is learnt in which steps. An adversary needs a weight of LPIPS.
        between: Share of the steps at a scale that lies between two enlargements, and needs resampling.
        sharp: Share of the steps at more than scale 1 that learn from views with sharp pictures, if there are any;
            the others learn from photographs, on which pixels count ``soft`` only.
        cells: Latent cells a side of what is decoded of a view.
        margin: Cells around it that no loss sees: there the decoder lacks what it would see of a whole latent.
        crop: Pixels a side of what LPIPS and the adversary see of a picture.
        gradient: Weight of L1 between differences of neighbouring pixels, of sharp pictures.
        grid: Weight of what is wrong alike in the blocks of pixels that the enlarger makes of a position.
        reduced: Weight of L1 between the reduced picture and what was encoded.
        soft: Weight of L1 between an enlarged picture and a photograph: what the latent does not tell it averages away.
        round_trip: For the encoder, weight of L1 between a picture and what its own latent decodes to.
        adversary_from: Share of the run after which the adversary is listened to; it learns a little before.
        lr: Highest learning rate.
        copied_share: That of what a tiny autoencoder's weights were copied to, over that of the rest.
        adversary_lr: Learning rate of the adversary, constant.
        warmup: Steps of linear warm-up, each time that a run is continued.
        final: Learning rates at the end, as a share of the highest.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are what is saved and evaluated.
        noise: Largest standard deviation of noise on a decoder's latents, which in use are not encoder outputs.
        seed: Of weights and batches.
        bfloat16: Mixed precision, where the device computes in bfloat16.
        compile: Compiles the model's larger parts (``torch.compile``), for a GPU.
        save_every: Minutes between checkpoints.
    """

    preset: str = "edge"
    part: str = "decoder"
    latent_space: str = "flux2"
    latent_channels: int = 32
    minutes: float = 90.0
    lessons: tuple[Lesson, ...] = (
        Lesson(4, 0.55, 2, 0.4, 0.4),
        Lesson(2, 0.20, 3, 0.4, 0.4),
        Lesson(1, 0.25, 4, 0.15, 0.2),
    )
    between: float = 0.2
    sharp: float = 0.7
    cells: int = 16
    margin: int = 1
    crop: int = 192
    gradient: float = 0.5
    grid: float = 2.0
    reduced: float = 0.5
    soft: float = 0.15
    round_trip: float = 5.0
    adversary_from: float = 0.4
    lr: float = 4e-4
    copied_share: float = 0.1
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
        """Whether a parameter of the model learns in this run."""
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
        if not 0 <= 2 * self.margin < self.cells:
            raise ValueError(f"a margin of {self.margin} cells leaves nothing of {self.cells}")
        for name in ("between", "sharp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, in [0, 1], not {getattr(self, name)}")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, not {self.minutes}")
