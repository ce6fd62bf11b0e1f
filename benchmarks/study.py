"""What a loss, or a larger part, brings: ``python -m benchmarks.study losses|parts CHECKPOINT --photos DIR ...``.

Every variant is trained from the same checkpoint for the same steps on the same batches, as ``infgen_training.train``
does it, and then measured on photographs that were kept out of training. A larger part starts as the identity, so that
all variants begin at the same picture, and only what is new learns: what that wins in equal steps, for what it costs,
says which part is starved.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import nn

from benchmarks.cost import decoder_cost
from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_export.model import DecoderConfig, InfGen
from infgen_export.model.config import Level
from infgen_export.model.infgen import DecoderBlock
from infgen_export.model.layers import ResidualBlock, TripleBlock
from infgen_training.config import TrainConfig
from infgen_training.evaluate import Task, to_pixels
from infgen_training.metrics import compare
from infgen_training.teacher import Teacher
from infgen_training.train import train

CROP = (1024, 768)
"""Middle of a photograph that is measured, so that a variant takes a minute."""
VIEWS = 600
SHAPES = ((32, 32), (32, 32), (24, 40), (40, 24), (48, 64))


def _more(levels: Sequence[Level], index: int, count: int = 1) -> tuple[Level, ...]:
    """The same with some blocks more at a level."""
    return tuple(replace(level, blocks=level.blocks + count * (place == index)) for place, level in enumerate(levels))


@dataclass(frozen=True)
class Variant:
    """One run of a study.

    Attributes:
        settings: Fields of its ``TrainConfig``.
        enlarge: Its architecture, from the checkpoint's.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    enlarge: Callable[[DecoderConfig], DecoderConfig] = copy.copy


def _perceptual(name: str, weight: float) -> Variant:
    return Variant({"perceptual": name, "perceptual_weight": weight})


STUDIES: dict[str, dict[str, Variant]] = {
    "losses": {
        "L1": Variant(),
        "+ 0.1 multi-scale SSIM": _perceptual("ms_ssim", 0.1),
        "+ 0.1 Fourier magnitudes": _perceptual("fourier", 0.1),
        "+ 0.1 teacher's features": _perceptual("teacher", 0.1),
        "+ 1 L1 of reduced pictures": Variant({"pyramid_weight": 1.0}),
        "+ 0.1 PatchGAN": Variant({"adversarial_weight": 0.1}),
    },
    "parts": {
        "prefill, 1 position a cell": Variant(enlarge=lambda c: replace(c, trunk=_more(c.trunk, 0))),
        "refine, finest": Variant(enlarge=lambda c: replace(c, trunk=_more(c.trunk, len(c.trunk) - 1))),
        "refine, finest, 3 blocks": Variant(enlarge=lambda c: replace(c, trunk=_more(c.trunk, len(c.trunk) - 1, 3))),
        "decode, tokens": Variant(enlarge=lambda c: replace(c, token_blocks=c.token_blocks + 1)),
        "decode, attention": Variant(enlarge=lambda c: replace(c, blocks=c.blocks + 1)),
        "decode, last level": Variant(enlarge=lambda c: replace(c, levels=_more(c.levels, len(c.levels) - 1))),
    },
}


# What is there already keeps its weights; what is new needs the rates of what is new.
RATES: dict[str, Mapping[str, Any]] = {
    "losses": {"muon_lr": 0.001, "lr": 0.0002, "copied_share": 0.2},
    "parts": {"muon_lr": 0.004, "lr": 0.0008, "copied_share": 1.0},
}


def grow(model: InfGen, config: DecoderConfig) -> InfGen:
    """A model of a larger config that makes the same picture: what is new starts as the identity."""
    larger = InfGen(config)
    before, after = model.state_dict(), larger.state_dict()
    fresh = after.keys() - before.keys()
    with torch.no_grad():
        for name, module in larger.named_modules():
            inside = {key for key in after if key.startswith(f"{name}.")}
            if inside and inside <= fresh:
                for layer in _last_layers(module):
                    for parameter in layer.parameters():
                        parameter.zero_()
    larger.load_state_dict({**larger.state_dict(), **before})
    return larger.eval()


def _last_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a residual block whose zeros make it the identity; none for other modules."""
    if isinstance(module, ResidualBlock):
        return [module.second]
    if isinstance(module, TripleBlock):
        return [module.convolve[-1], *([module.pool[-1]] if module.pool is not None else [])]
    if isinstance(module, DecoderBlock):
        return [module.attention.out, module.mlp[-1]]
    return []


def middle(file: Path) -> Image.Image:
    """What is measured of a photograph."""
    photo = Image.open(file).convert("RGB")
    width, height = (min(most, side) for most, side in zip(CROP, photo.size, strict=True))
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))


def tasks(pictures: Sequence[Image.Image], scales: Sequence[float], teacher: Teacher) -> dict[float, list[Task]]:
    """What is measured: each picture at each scale."""
    return {scale: [Task.of(picture, scale, teacher) for picture in pictures] for scale in scales}


@torch.inference_mode()
def measure(model: InfGen, found: Mapping[float, Sequence[Task]]) -> dict[str, dict[str, float]]:
    """Means of PSNR and SSIMULACRA2 a scale."""
    means = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for scale, items in found.items():
            pictures = [to_pixels(model(task.latent, task.size)) for task in items]
            scores = list(pool.map(compare, pictures, [task.truth for task in items]))
            means[f"{scale:g}"] = {
                name: statistics.fmean(score[name] for score in scores) for name in ("psnr", "ssimulacra2")
            }
    return means


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """PSNR / SSIMULACRA2 a scale, a line each variant; the first is what all of them started from."""
    scales = list(next(iter(results.values()))["scales"])
    lines = [f"| variant | M a cell | thousand a pixel | {' | '.join(f'scale {scale}' for scale in scales)} |"]
    lines.append("|---" * (3 + len(scales)) + "|")
    for name, result in results.items():
        cells = [
            f"{result['scales'][scale]['psnr']:.2f} / {result['scales'][scale]['ssimulacra2']:.1f}" for scale in scales
        ]
        cost = (f"{result['context'] / 1e6:.2f}", f"{result['decode'] / 1e3:.1f}")
        lines.append(f"| {' | '.join((name, *cost, *cells))} |")
    return "\n".join(lines)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("study", type=click.Choice(sorted(STUDIES)))
@click.argument("checkpoint", type=_FOLDER)
@click.option(
    "--photos", type=_FOLDER, required=True, help="Photographs; what a run keeps out of training measures it."
)
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--steps", default=200, show_default=True, help="Of each variant.")
@click.option("--cells", default=2048, show_default=True, help="Latent cells a batch.")
@click.option("--scales", default="1,2,4", show_default=True, help="Comma-separated, measured.")
@click.option("--only", multiple=True, help="Names of variants; all by default.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Continued if it exists."
)
def main(
    study: str, checkpoint: Path, photos: Path, teacher: Path, steps: int, cells: int, scales: str,
    only: tuple[str, ...], device: str, output: Path,
) -> None:  # fmt: skip
    """Trains every variant of a STUDY from CHECKPOINT for equal steps and prints what each has won."""
    base = TrainConfig(
        part="decoder", steps=steps, warmup=steps // 10, trunk_rest=0, shapes=SHAPES, views=VIEWS, cells=cells,
        scales=(1.0, 4.0), native_share=0.2, ema=0.98, **RATES[study],
    )  # fmt: skip
    kept_out = [file for file in sorted(photos.iterdir()) if file.stem in base.exclude]
    output.mkdir(parents=True, exist_ok=True)
    found = tasks(
        [middle(file) for file in kept_out], [float(scale) for scale in scales.split(",")], Teacher.load(teacher)
    )
    results: dict[str, dict[str, Any]] = {}

    def add(name: str, folder: Path) -> None:
        results[name] = {"scales": measure(load_checkpoint(folder), found), **decoder_cost(folder)}
        (output / f"{study}.json").write_text(json.dumps(results, indent=2) + "\n")

    add("before", checkpoint)
    cache = output / "latents.safetensors"
    for name, variant in STUDIES[study].items():
        if only and name not in only:
            continue
        run = output / name.replace(" ", "_").strip("+_")
        run.mkdir(exist_ok=True)
        if cache.exists() and not (run / cache.name).exists():
            os.link(cache, run / cache.name)
        model = load_checkpoint(checkpoint)
        larger = grow(model, variant.enlarge(model.config))
        save_checkpoint(run / "start", larger)
        new = tuple(sorted(larger.state_dict().keys() - model.state_dict().keys()))
        config = dataclasses.replace(base, learns=new, **variant.settings)
        train(config, photos, teacher, run, torch.device(device), run / "start")
        if not cache.exists():
            os.link(run / cache.name, cache)
        add(name, run / "checkpoint")
        click.echo(table(results))


if __name__ == "__main__":
    main()
