"""What the reference model promises to every graph that is made of it."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from infgen_export.work import context_work, multiply_adds
from infgen_model import PRESETS, DecoderConfig, Enlargement, Grid, InfGen, Level
from infgen_model.attention import CrossAttention, Neighbours, window_attention
from infgen_model.grid import Axis
from infgen_model.inpe import INPE, sphere
from infgen_model.layers import fold
from infgen_model.sampling import bilinear, lanczos
from infgen_rt.backend.inputs import fill, tile_inputs
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.windows import CellWindows

from . import tiny

MODELS = {name: tiny.model(config) for name, config in tiny.CONFIGS.items()}
kinds = st.sampled_from(sorted(MODELS))
cells = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def sizes(draw: st.DrawFn, latent: tuple[int, int], low: float = 0.5, high: float = 6.0) -> tuple[int, int]:
    """Height and width of a picture, at independent scales."""
    return tuple(max(1, round(8 * side * draw(st.floats(low, high)))) for side in latent)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_run(preset: str) -> None:
    config = PRESETS[preset]()
    model = InfGen(config).eval()
    with torch.inference_mode():
        image = model(torch.randn(1, config.latent_channels, 3, 5), (37, 83))
        latent = model.encode(torch.rand(1, 3, 40, 88))
    assert image.shape == (1, 3, 37, 83) and image.isfinite().all()
    assert latent.shape == (1, config.latent_channels, 5, 11) and latent.isfinite().all()


@settings(max_examples=40)
@given(st.data())
def test_any_size_of_any_latent(data: st.DataObject) -> None:
    kind, (height, width) = data.draw(kinds), data.draw(cells)
    size = data.draw(sizes((height, width)))
    image = MODELS[kind](tiny.latent(height, width, batch=2), size)
    assert image.shape == (2, 3, *size) and image.isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_pictures_of_a_batch_do_not_mix(kind: str) -> None:
    latents = tiny.latent(6, 5, batch=3)
    together = MODELS[kind](latents, (61, 77))
    alone = torch.cat([MODELS[kind](latent[None], (61, 77)) for latent in latents])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_everything_a_model_is_given_shows_in_the_picture(kind: str) -> None:
    """Each input of decode, changed a little, changes the picture: none is ignored."""
    model, grid = MODELS[kind], Grid.whole((6, 7), (90, 130))
    enlargement = model.config.enlargement_for((1.9, 2.3))
    context = model.context(tiny.latent(6, 7), enlargement)
    image = model.decode(context, grid, enlargement)
    for name in ("token_y", "token_x", "scale", *(["extent"] if kind == "paper" else [])):
        moved = dataclasses.replace(grid, **{name: getattr(grid, name) * 1.02})
        assert (model.decode(context, moved, enlargement) - image).abs().max() > 1e-3, name


# Decode is local.


@settings(max_examples=40)
@given(st.data())
def test_a_tile_decoded_by_itself_is_a_crop_of_the_whole(data: st.DataObject) -> None:
    kind, (height, width) = data.draw(kinds), data.draw(cells)
    model, config = MODELS[kind], tiny.CONFIGS[kind]
    size = data.draw(sizes((height, width)))
    grid = coordinates.Grid(Size(width, height), Size(size[1], size[0]), 8)
    x, y = data.draw(st.integers(0, grid.tokens.width - 1)), data.draw(st.integers(0, grid.tokens.height - 1))
    tile = Box(
        x, y, data.draw(st.integers(1, grid.tokens.width - x)), data.draw(st.integers(1, grid.tokens.height - y))
    )
    latent = tiny.latent(height, width)
    whole = model(latent, size)
    pixels = cut(model, latent, grid, tile, config.halo_tokens, config.radius)
    assert torch.allclose(pixels, whole[:, :, *grid.pixels_of(tile).slices], atol=1e-5)


def cut(model: InfGen, latent: Tensor, grid: coordinates.Grid, tile: Box, halo: int, radius: float | None) -> Tensor:
    """A tile's pixels, decoded with a halo that is dropped."""
    tokens = tile.grow(halo, grid.tokens.box)
    enlargement = model.config.enlargement_for(grid.scale)
    image = tiny.decode(model, model.context(latent, enlargement), grid, tokens, radius, enlargement)
    return image[:, :, *grid.pixels_of(tile).relative_to(grid.pixels_of(tokens)).slices]


@pytest.mark.parametrize("kind", MODELS)
def test_a_smaller_halo_is_not_enough(kind: str) -> None:
    """Without this the test above could pass with a halo that is never needed."""
    model, config = MODELS[kind], tiny.CONFIGS[kind]
    assert error_of_a_tile(model, config.halo_tokens, config.radius) < 1e-5
    assert error_of_a_tile(model, config.halo_tokens - 1, config.radius) > 1e-4


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.5, 3.2])
def test_a_smaller_crop_of_the_context_is_not_enough(radius: float) -> None:
    config = dataclasses.replace(tiny.EDGE, radius=radius)
    model = tiny.model(config)
    assert error_of_a_tile(model, config.halo_tokens, config.radius) < 1e-5
    # Crops are rounded outwards, so a little less is still enough.
    if radius > 2:
        assert error_of_a_tile(model, config.halo_tokens, 1.0) > 1e-4


def error_of_a_tile(model: InfGen, halo: int, radius: float | None) -> float:
    latent, grid = tiny.latent(18, 18), coordinates.Grid(Size(18, 18), Size(288, 288), 8)
    tile = Box(15, 15, 4, 4)
    whole = model(latent, (288, 288))[:, :, *grid.pixels_of(tile).slices]
    return (cut(model, latent, grid, tile, halo, radius) - whole).abs().max().item()


@pytest.mark.parametrize("scale", [0.3, 0.7, 1, 1.37, 2, 3.3, 4])
def test_tiles_of_every_enlargement_are_crops_of_the_whole(scale: float) -> None:
    model, latent, config = MODELS["edge"], tiny.latent(17, 12), tiny.EDGE
    size = round(8 * 17 * scale), round(8 * 12 * scale)
    grid = coordinates.Grid(Size(12, 17), Size(*size[::-1]), 8)
    enlargement = config.enlargement_for(grid.scale)
    assert enlargement.factor == {0.3: 1, 0.7: 1, 1: 1, 1.37: 2, 2: 2, 3.3: 4, 4: 4}[scale]
    whole, context = model(latent, size), model.context(latent, enlargement)
    joined = torch.full_like(whole, torch.nan)
    for side in (3, 7):
        starts = itertools.product(range(0, grid.tokens.width, side), range(0, grid.tokens.height, side))
        for x, y in starts:
            tile = Box(x, y, side, side).intersect(grid.tokens.box)
            tokens = tile.grow(config.halo_tokens, grid.tokens.box)
            image = tiny.decode(model, context, grid, tokens, config.radius, enlargement)
            pixels = grid.pixels_of(tile)
            joined[:, :, *pixels.slices] = image[:, :, *pixels.relative_to(grid.pixels_of(tokens)).slices]
        assert torch.allclose(joined, whole, atol=1e-5)


# Whole cells are decoded by another function.


@pytest.mark.parametrize("start", ["sampled", "mask"])
@pytest.mark.parametrize("radius", [0.5, 1.5, 2.2])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_whole_cells_are_decoded_to_the_same_pixels(factor: int, radius: float, start: str) -> None:
    config = dataclasses.replace(tiny.EDGE, radius=radius, start=start, blocks=2)
    model = tiny.model(config)
    enlargement = config.enlargement_for((factor, factor))
    for height, width in ((1, 1), (1, 6), (7, 5)):
        context = model.context(tiny.latent(height, width, batch=2), enlargement)
        grid = Grid.whole((height, width), (8 * factor * height, 8 * factor * width))
        assert torch.allclose(
            model.decode.whole_cells(context, enlargement), model.decode(context, grid, enlargement), atol=1e-5
        )


def whole_cells(model: InfGen, windows: CellWindows, context: Tensor, pixels: Box) -> Tensor:
    """The pixels of a box, from the cells that the windows give."""
    enlargement = model.config.enlargement_for((windows.factor, windows.factor))
    tokens, seen = windows.of(windows.grid.tokens_of(pixels))
    image = model.decode.whole_cells(context[:, :, *seen.slices], enlargement)
    assert image.shape[2:] == (8 * tokens.height, 8 * tokens.width)
    return image[:, :, *pixels.relative_to(windows.grid.pixels_of(tokens)).slices]


@settings(max_examples=40)
@given(st.data())
def test_any_box_decoded_from_whole_cells_is_a_crop_of_the_whole(data: st.DataObject) -> None:
    model, config = MODELS["edge"], tiny.EDGE
    (height, width), factor = data.draw(cells), data.draw(st.sampled_from([1, 2, 4]))
    grid = coordinates.Grid(Size(width, height), Size(8 * factor * width, 8 * factor * height), 8)
    x, y = (data.draw(st.integers(0, side - 1)) for side in grid.picture)
    box = Box(*(x, y), *(data.draw(st.integers(1, side - at)) for side, at in zip(grid.picture, (x, y), strict=True)))
    context = model.context(tiny.latent(height, width), config.enlargement_for(grid.scale))
    windows = CellWindows(grid, config.halo_tokens, 1, factor)
    expected = model(tiny.latent(height, width), grid.picture[::-1])[:, :, *box.slices]
    assert torch.allclose(whole_cells(model, windows, context, box), expected, atol=1e-5)
    decoded, largest = windows.of(grid.tokens_of(box)).tokens, windows.largest(grid.tokens_of(box).size)
    assert decoded.width <= largest.width and decoded.height <= largest.height


@pytest.mark.parametrize(("halo", "reach"), [(0, 1), (1, 0)])
def test_a_smaller_window_of_whole_cells_is_not_enough(halo: int, reach: int) -> None:
    model, grid, box = MODELS["edge"], coordinates.Grid(Size(9, 9), Size(288, 288), 8), Box(96, 96, 64, 64)
    context = model.context(tiny.latent(9, 9), tiny.EDGE.enlargement_for((4, 4)))
    expected = model(tiny.latent(9, 9), (288, 288))[:, :, *box.slices]
    errors = [
        (whole_cells(model, windows, context, box) - expected).abs().max().item()
        for windows in (
            CellWindows(grid, tiny.EDGE.halo_tokens, 1, 4),
            CellWindows(grid, halo * tiny.EDGE.halo_tokens, reach, 4),
        )
    ]
    assert errors[0] < 1e-5 and errors[1] > 1e-4


@pytest.mark.parametrize(
    "levels", [(Level(8, 0), Level(8, 1)), (Level(8, 0), Level(6, 0), Level(4, 0)), (Level(8, 1),)]
)
def test_levels_without_blocks_merge_to_the_same_pixels(levels: tuple[Level, ...]) -> None:
    upsampler = tiny.model(dataclasses.replace(tiny.EDGE, levels=levels, detail=3)).decode.upsampler
    tokens = torch.randn(2, tiny.EDGE.width, 3, 4)
    detail = torch.randn(2, levels[-1].width, 3 * upsampler.factor, 4 * upsampler.factor)
    expected, before = upsampler(tokens, detail), len(shuffles(upsampler))
    upsampler.merge()
    assert torch.allclose(upsampler(tokens, detail), expected, atol=1e-5)
    assert len(shuffles(upsampler)) == before - sum(level.blocks == 0 for level in levels[:-1])


def shuffles(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if isinstance(each, nn.PixelShuffle)]


LEVELS = [
    (0, ()),
    (2, ()),
    (0, (Level(8, 2), Level(8, 1))),
    (1, (Level(8, 0), Level(8, 3))),
    (1, (Level(8, 2), Level(8, 2), Level(8, 2))),
]


@pytest.mark.parametrize(("token_blocks", "levels"), LEVELS)
def test_halo_tokens_is_how_far_a_tile_looks(token_blocks: int, levels: tuple[Level, ...]) -> None:
    config = dataclasses.replace(
        tiny.EDGE, token_blocks=token_blocks, levels=levels, detail=0, enlargements=(), trunk=(Level(8, 1),)
    )
    upsampler = InfGen(config).double().decode.upsampler
    tokens = torch.randn(1, config.width, 25, 25, dtype=torch.float64, requires_grad=True)
    upsampler(tokens)[:, :, 8 * 12 : 8 * 13, 8 * 12 : 8 * 13].sum().backward()
    assert reach(tokens.grad, Box(12, 12, 1, 1)) == [config.halo_tokens] * 4


@pytest.mark.parametrize("blocks", [(0,), (2,), (0, 0), (1, 1), (2, 1), (1, 3), (1, 0, 2), (1, 1, 1, 1)])
def test_encode_halo_is_how_far_a_cell_looks(blocks: tuple[int, ...]) -> None:
    config = dataclasses.replace(tiny.EDGE, encoder=tuple(Level(8, count) for count in blocks), encoder_pooled=0)
    encode = InfGen(config).double().encode
    image = torch.rand(1, 3, 264, 264, dtype=torch.float64, requires_grad=True)
    encode(image)[:, :, 16, 16].sum().backward()
    top, left, bottom, right = reach(image.grad, Box(128, 128, 8, 8))
    assert top == left == config.encode_halo
    # Halving convolutions look one position back and none ahead.
    assert bottom == right == config.encode_halo - sum(8 >> depth for depth in range(1, len(blocks)))


@pytest.mark.parametrize(("factor", "done"), [(1, 1), (3, 1), (6, 1), (6, 2), (6, 3), (6, 6)])
def test_a_tensor_is_folded_at_once_or_in_two_steps(factor: int, done: int) -> None:
    x = torch.rand(2, 3, 4 * factor, 5 * factor)
    halfway = torch.nn.functional.pixel_unshuffle(x, done)
    assert fold(halfway, factor, done).equal(torch.nn.functional.pixel_unshuffle(x, factor))


def test_the_halos_of_an_encoder_with_statistics_are_those_of_its_parts() -> None:
    config = dataclasses.replace(tiny.EDGE, encoder=(Level(8, 1), Level(8, 3)), encoder_pooled=2)
    encode = InfGen(config).double().encode
    image = torch.rand(1, 3, 264, 264, dtype=torch.float64, requires_grad=True)
    encode.features(image)[:, :, 16, 16].sum().backward()
    assert reach(image.grad, Box(128, 128, 8, 8))[0] == config.encode_halo
    features = torch.rand(1, 8, 33, 33, dtype=torch.float64, requires_grad=True)
    moments = torch.stack([torch.zeros(2, 4), torch.ones(2, 4)]).double()
    encode.latent(features, moments)[:, :, 16, 16].sum().backward()
    assert reach(features.grad, Box(16, 16, 1, 1)) == [config.encode_latent_halo] * 4


def test_more_blocks_with_statistics_than_the_encoders_last_level_has_are_refused() -> None:
    with pytest.raises(
        ValueError, match="encoder_pooled must be at most the 3 blocks of the encoder's last level, not 4"
    ):
        dataclasses.replace(tiny.EDGE, encoder_pooled=4)


def reach(gradient: Tensor, box: Box) -> list[int]:
    """How far beyond a box a gradient is not zero: top, left, bottom, right."""
    y, x = (torch.nonzero(gradient[0].abs().sum((0, axis)))[:, 0].tolist() for axis in (2, 1))
    return [box.y - y[0], box.x - x[0], y[-1] + 1 - box.bottom, x[-1] + 1 - box.right]


def test_prefill_sees_the_whole_latent_and_decode_does_not() -> None:
    model = MODELS["edge"]
    latent = tiny.latent(30, 30)
    other = latent.clone()
    other[..., 29, 29] += 2
    enlargement = model.config.enlargements[0]
    context, changed = model.context(latent, enlargement), model.context(other, enlargement)
    assert (context - changed).abs().amax(1).min() > 1e-6

    spot = context.clone()
    spot[..., 29, 29] += 2
    grid = Grid.whole((30, 30), (240, 240))
    images = (model.decode(each, grid, enlargement) for each in (context, spot))
    difference = (next(images) - next(images)).abs()[0].amax(0)
    near = 8 * math.ceil(tiny.EDGE.halo_tokens + tiny.EDGE.radius + 0.5)
    assert difference[-8:, -8:].min() > 1e-3
    assert difference[: 240 - near].max() < 1e-6 and difference[:, : 240 - near].max() < 1e-6


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_prefill_halo_is_how_far_a_cell_looks_beside_statistics(blocks: int) -> None:
    config = dataclasses.replace(tiny.EDGE, trunk=(Level(8, blocks), *tiny.EDGE.trunk[1:]))
    model = tiny.model(config).double()
    latent = tiny.latent(31, 31).double().requires_grad_()
    moments = torch.rand(2, *config.moments, dtype=torch.float64)
    model.prefill(latent, moments)[:, :, 15, 15].sum().backward()
    assert reach(latent.grad, Box(15, 15, 1, 1)) == [config.prefill_halo] * 4


TRUNKS = [(1, 0, 1), (0, 0, 0), (2, 1, 0), (0, 1, 2)]
"""Blocks of the finer resolutions."""


@pytest.mark.parametrize(
    "enlargement",
    [*tiny.EDGE.enlargements, Enlargement(3, 5), Enlargement(4, 6, finish=2, polish=4)],
    ids=lambda each: f"x{each.factor}-{each.blocks}",
)
@pytest.mark.parametrize("blocks", TRUNKS)
def test_refine_halo_is_how_far_a_cell_looks(blocks: tuple[int, ...], enlargement: Enlargement) -> None:
    levels = [Level(6, count) for count in blocks]
    trunk, encoder = (tiny.EDGE.trunk[0], *levels), {"encoder": (Level(8, 1), Level(8, 1)), "encoder_pooled": 0}
    config = dataclasses.replace(tiny.EDGE, trunk=trunk, enlargements=(enlargement,), **encoder)
    # With some random numbers, which follow those of the encoder, the few rectified channels are 0 all the way from the
    # farthest cells.
    refine, halo = tiny.model(config, seed=2).double().refine, config.refine_halo(enlargement)
    features = torch.rand(1, 8, 31, 31, dtype=torch.float64, requires_grad=True)
    context = refine(features, enlargement)
    context[:, :, 15, 15].square().sum().backward()
    assert reach(features.grad, Box(15, 15, 1, 1)) == [halo] * 4
    # A part of the latent, with as much around it, gives what the whole gives, and with less it does not: by little,
    # through so many convolutions, but in float64 by more than rounding.
    part, (y, x) = context[:, :, 12:16, 9:14], (slice(12, 16), slice(9, 14))
    for around, exact in ((halo, True), (halo - 1, False)):
        window = features[:, :, y.start - around : y.stop + around, x.start - around : x.stop + around]
        made = refine(window, enlargement)[:, :, around : around + 4, around : around + 5]
        error = (made - part).abs().max()
        assert error < 1e-13 if exact else error > 1e-12


def test_the_least_enlargement_that_a_scale_is_not_beyond_is_taken() -> None:
    scales = {0.3: 1, 1.0: 1, 1.01: 2, 2.0: 2, 2.5: 4, 4.0: 4, 9.0: 4}
    assert {s: tiny.EDGE.enlargement_for((0.9 * s, s)).factor for s in scales} == scales
    assert tiny.PAPER.enlargement_for((2.0, 2.0)) is None


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_new_model_starts_at_its_trunks_picture(factor: int) -> None:
    """At the size that an enlargement is for: tokens add nothing yet, and resampling changes nothing."""
    model, latent = InfGen(tiny.EDGE).eval(), tiny.latent(5, 4)
    enlargement = next(each for each in tiny.EDGE.enlargements if each.factor == factor)
    with torch.inference_mode():
        folded = model.context(latent, enlargement)[:, -3 * 64 * factor**2 :]
        expected = torch.nn.functional.pixel_shuffle(folded, 8 * factor)
        image = model(latent, (40 * factor, 32 * factor))
        native = model(latent, (40, 32))
    assert torch.allclose(image, expected, atol=1e-5)
    # Enlarged as Pillow does it, which treats the edges in another way.
    planes = (Image.fromarray(plane.numpy()) for plane in native[0])
    enlarged = [np.asarray(each.resize((32 * factor, 40 * factor), Image.Resampling.BICUBIC)) for each in planes]
    inner = (..., slice(2 * factor, -2 * factor), slice(2 * factor, -2 * factor))
    assert np.abs(image[0].numpy() - np.stack(enlarged))[inner].max() < 1e-5


def test_moments_are_those_of_group_normalisation() -> None:
    model, latent = MODELS["edge"], tiny.latent(13, 20)
    moments = statistics(model, latent)
    assert moments.shape == (2, *tiny.EDGE.moments) and (moments[1] > 1e-4).all()
    assert torch.allclose(model.prefill(latent, moments), model.prefill(latent), atol=1e-5)
    # A shade more in one block's, and it is another picture.
    for block in range(2):
        other = moments.clone()
        other[0, block] += 0.1
        assert (model.prefill(latent, other) - model.prefill(latent)).abs().max() > 1e-3


def test_statistics_count_a_part_as_its_shares_say() -> None:
    model, latent, halo = MODELS["edge"], tiny.latent(30, 34), tiny.EDGE.prefill_halo
    whole = statistics(model, latent)
    # Of two halves, each with as much of the other as it looks at, and the first block's moments known of the whole.
    part, share_x = latent[..., : 17 + halo], torch.zeros(17 + halo)
    share_x[:17] = 1 / 17
    known = whole.clone()
    known[:, 1] = -1
    right = model.statistics(latent[..., 17 - halo :], torch.full((30,), 1 / 30), share_x.flip(0), known)
    left = model.statistics(part, torch.full((30,), 1 / 30), share_x, known)
    assert torch.allclose((left[0] + right[0]) / 2, whole[0], atol=1e-5)
    spread = (torch.square(left[0] - whole[0]) + torch.square(right[0] - whole[0])) / 2
    assert torch.allclose((left[1] + right[1]) / 2 + spread, whole[1], atol=1e-5)
    unknown = model.statistics(part, torch.full((30,), 1 / 30), share_x, torch.full_like(known, -1))
    assert torch.allclose(unknown[:, 0], left[:, 0]) and (unknown - left)[:, 1].abs().max() > 1e-4


def statistics(model: InfGen, latent: Tensor) -> Tensor:
    """Of a whole latent."""
    shares = (torch.full((side,), 1 / side) for side in latent.shape[2:])
    return model.statistics(latent, *shares, torch.full((2, *model.config.moments), -1.0))


# The implicit positional embedding.


def test_no_two_positions_share_a_point_of_the_sphere() -> None:
    side = torch.linspace(0, 1, 257)
    points = sphere(side, side)
    assert torch.allclose(points.norm(dim=-1), torch.ones(257, 257))
    assert len(torch.unique((points.reshape(-1, 3) * 1e4).round(), dim=0)) == 257 * 257


def test_positions_are_embedded_in_float32_whatever_surrounds_them() -> None:
    inpe = INPE(64, 16.0, 32)
    y, x, scale = torch.rand(20), torch.rand(30), torch.tensor([1.5, 2.0])
    expected = inpe(y, x, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        embedded = inpe(y, x, scale)
    assert embedded.dtype == torch.float32 and torch.equal(embedded, expected)


# Attention.


def fade(cell: int, token: float, radius: float) -> float:
    """Of the cells up to the one at the radius the model's window ends at a millionth, not at zero."""
    if abs(cell - math.floor(token)) > math.ceil(radius - 0.5):
        return 0.0
    return min(max((radius - abs(cell + 0.5 - token)) / min(0.5, radius), 1e-6), 1.0)


@pytest.mark.parametrize("radius", [0.75, 1.0, 1.5, 2.0, 2.7])
@pytest.mark.parametrize("scale", [(1.3, 2.6), (0.7, 1.0), (0.55, 3.9)])
def test_window_attention_is_softmax_over_the_cells_within_the_radius(
    radius: float, scale: tuple[float, float]
) -> None:
    heads, depth, extent = 2, 4, (5, 7)
    # As many as it takes to cover all cells, and so the last one's centre may be beyond them.
    tokens = [(torch.arange(math.ceil(n * s)) + 0.5) / s for n, s in zip(extent, scale, strict=True)]
    centres = [torch.arange(n) + 0.5 for n in extent]
    query = torch.randn(1, len(tokens[0]), len(tokens[1]), heads, depth)
    key, value = torch.randn(1, *extent, heads, depth), torch.randn(1, *extent, heads, 3)
    near = [
        Neighbours.of(Axis(cells, token, torch.tensor([float(n)]), torch.ones(1)), radius)
        for token, cells, n in zip(tokens, centres, extent, strict=True)
    ]
    actual = window_attention(query, key, value, *near).unflatten(3, (heads, 3))
    for (i, y), (j, x), head in itertools.product(enumerate(tokens[0]), enumerate(tokens[1]), range(heads)):
        weights, total = 0.0, torch.zeros(3)
        for row, column in itertools.product(range(extent[0]), range(extent[1])):
            window = fade(row, y.item(), radius) * fade(column, x.item(), radius)
            score = query[0, i, j, head] @ key[0, row, column, head] / math.sqrt(depth)
            weights += math.exp(score) * window
            total += math.exp(score) * window * value[0, row, column, head]
        assert torch.allclose(actual[0, i, j, head], total / weights, atol=2e-5)


def test_cells_beyond_the_latent_have_exactly_no_weight() -> None:
    """A crop that is padded, as fixed shapes need, gives what the crop alone gives."""
    tokens, extent = torch.tensor([0.1, 1.5, 2.9]), torch.tensor([3.0])
    query = torch.full((1, 3, 3, 1, 4), 5.0)
    key = torch.randn(1, 6, 6, 1, 4, generator=torch.Generator().manual_seed(0))
    key[:, 3:], key[:, :, 3:] = 20.0, 20.0  # scores far above those of the true cells
    value = torch.zeros(1, 6, 6, 1, 2)
    value[:, :3, :3, :, 0] = 1.0
    value[:, 3:, :, :, 1], value[:, :, 3:, :, 1] = 1.0, 1.0
    near = Neighbours.of(Axis(torch.arange(6) + 0.5, tokens, extent, torch.ones(1)), 1.5)
    inside, outside = window_attention(query, key, value, near, near).unbind(-1)
    assert torch.all(outside == 0)
    assert torch.allclose(inside, torch.ones(1, 3, 3))


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 2.7])
def test_attention_is_continuous_where_the_neighbours_change(radius: float) -> None:
    attention = CrossAttention(16, 16, 2, (1.0, 6.0), radius)
    context, token = torch.randn(1, 12, 12, 16), torch.randn(1, 1, 1, 16)
    centres, extent = torch.arange(12) + 0.5, torch.tensor([12.0, 12.0])
    # Every place where a cell comes or goes: cell borders and the radius around centres.
    for place in (5.0, 6.0, 5.5 + radius % 1, 6.5 - radius % 1):
        before, after = (
            attention(token, context, Grid(centres, centres, p, p, extent, torch.ones(2)))
            for p in (torch.tensor([place - 1e-4]), torch.tensor([place + 1e-4]))
        )
        assert (before - after).abs().max() < 2e-2 * before.abs().max()


@pytest.mark.parametrize("radius", [None, 1.5, 2.0])
def test_only_distances_matter_to_attention(radius: float | None) -> None:
    """Tokens and cells moved together by whole cells: the same picture elsewhere in a larger one."""
    torch.manual_seed(0)
    attention = CrossAttention(16, 16, 2, (math.pi / 4, 2 * math.pi), radius).eval()
    context, tokens = torch.randn(1, 9, 9, 16), torch.randn(1, 4, 5, 16)
    centres, y, x = torch.arange(9) + 0.5, torch.linspace(3.1, 5.9, 4), torch.linspace(3.2, 5.8, 5)
    extent = torch.tensor([100.0, 100.0])

    def attend(dy: float, dx: float, token_dy: float = 0.0) -> Tensor:
        grid = Grid(centres + dy, centres + dx, y + dy + token_dy, x + dx, extent, torch.ones(2))
        return attention(tokens, context, grid)

    assert torch.allclose(attend(0, 0), attend(40, 71), atol=1e-4)
    assert (attend(0, 0) - attend(0, 0, 0.3)).abs().max() > 1e-2


@pytest.mark.parametrize("factor", [2, 3])
def test_sampling_is_what_torch_calls_bilinear(factor: int) -> None:
    cells, grid = torch.randn(2, 5, 4, 6), Grid.whole((4, 6), (32 * factor, 48 * factor))
    expected = torch.nn.functional.interpolate(cells, scale_factor=factor, mode="bilinear")
    assert torch.allclose(bilinear(cells, grid.axes, 1, 1), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 56), (24, 32), (16, 48), (32, 24)])
def test_reducing_is_what_pillow_calls_lanczos(size: tuple[int, int]) -> None:
    picture, grid = np.random.default_rng(0).random((40, 56), np.float32), Grid.whole((5, 7), size)
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))
    made = lanczos(torch.from_numpy(picture)[None, None], grid.axes, 8, 8, 2.5)[0, 0].numpy()
    assert np.abs(made - expected).max() < 1e-5 * (1 if size == picture.shape else 100)


def resampled(
    picture: Tensor,
    y: Tensor,
    x: Tensor,
    reduction: float,
    first: tuple[int, int] = (0, 0),
    ends: tuple[int, int] | None = None,
) -> Tensor:
    """A crop that begins at ``first`` of a picture that ends at ``ends``, by the same reduction both ways."""
    vertical, horizontal = (
        Axis(torch.arange(side) + begin + 0.5, place, torch.tensor([float(end)]), torch.tensor([1 / reduction]))
        for side, begin, place, end in zip(picture.shape[2:], first, (y, x), ends or picture.shape[2:], strict=True)
    )
    return lanczos(picture, (vertical, horizontal), 1, 1, reduction)


def test_resampling_to_the_same_pixels_gives_them() -> None:
    """Whatever they are: a picture at its own size is not touched."""
    picture = torch.randn(2, 3, 23, 31)
    y, x = torch.arange(23) + 0.5, torch.arange(31) + 0.5
    for reduction in (1.0, 0.5):
        assert torch.allclose(resampled(picture, y, x, reduction), picture, atol=1e-5)
    assert torch.allclose(resampled(picture, y[4:9], x[20:], 1.0), picture[:, :, 4:9, 20:], atol=1e-5)


@settings(max_examples=60)
@given(st.data())
def test_resampling_sees_a_crop_as_the_whole(data: st.DataObject) -> None:
    """As long as it holds three pixels of the result on either side, or ends where the picture does."""
    picture, reduction = torch.rand(1, 3, 50, 60), data.draw(st.floats(0.2, 5.0), "reduction")
    reach = 3 * max(1.0, reduction)
    boxes, places = [], []
    for side in (50, 60):
        first = data.draw(st.floats(0, side - 0.1), "first")
        place = first + data.draw(st.floats(0.1, 3.0), "step") * torch.arange(data.draw(st.integers(1, 9), "count"))
        # The last ones may be beyond the end, as those of a picture's last token are.
        seen = place.clamp(0.5, side - 0.5)
        low, high = math.floor(seen[0].item() - reach), math.ceil(seen[-1].item() + reach)
        boxes.append((max(low, 0), min(high, side)))
        places.append(place)
    whole = resampled(picture, *places, reduction)
    (top, bottom), (left, right) = boxes
    crop = picture[:, :, top:bottom, left:right]
    part = resampled(crop, *places, reduction, (top, left), (50, 60))
    assert torch.allclose(whole, part, atol=2e-5)
    # What is filled up behind the end does not count.
    filled = torch.nn.functional.pad(crop, (0, 7, 0, 5), value=1e4)
    if (bottom, right) == (50, 60):
        assert torch.allclose(resampled(filled, *places, reduction, (top, left), (50, 60)), part)


@pytest.mark.parametrize("reduction", [0.3, 1.0, 1.7, 4.0, 9.0])
def test_what_is_flat_stays_so_when_it_is_resampled(reduction: float) -> None:
    """Weights add up to 1, at the borders too."""
    place = torch.linspace(-1, 41, 97)
    assert torch.allclose(resampled(torch.ones(1, 1, 40, 40), place, place, reduction), torch.ones(()), atol=1e-6)


def test_a_crop_that_is_a_pixel_too_small_is_noticed() -> None:
    """Without this the test of crops could pass on a filter that looks less far."""
    picture, place = torch.rand(1, 1, 60, 60), torch.tensor([30.2])
    whole = resampled(picture, place, place, 2.0)
    for first, same in ((24, True), (25, False)):
        part = resampled(picture[:, :, first:, first:], place, place, 2.0, (first, first), (60, 60))
        assert torch.allclose(part, whole, atol=1e-6) == same


def test_positions_within_tokens_are_those_of_smaller_tokens() -> None:
    whole, finer = (Grid.whole((4, 6), (8 * n, 8 * m)) for n, m in ((9, 11), (36, 44)))
    tile = {"token_y": whole.token_y[3:7], "token_x": whole.token_x[2:9]}
    part = dataclasses.replace(whole, key_y=whole.key_y[1:], key_x=whole.key_x[2:], **tile)
    y, x = (axis.places(4, 1) for axis in part.axes)
    # Those before the crop's first values are moved there.
    assert torch.allclose(y, (finer.token_y[12:28] - 1).clamp(min=0.5), atol=1e-5)
    assert torch.allclose(x, (finer.token_x[8:36] - 2).clamp(min=0.5), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_tile_of_a_resampled_picture_is_that_part_of_the_whole(data: st.DataObject) -> None:
    """In the groups of pixels that tokens are made of, with the crop that a runtime cuts, also filled up."""
    cells = [data.draw(st.integers(1, 9), "cells") for _ in range(2)]
    size = [data.draw(st.integers(8 * n, 32 * n), "pixels") for n in cells]
    grid = coordinates.Grid(Size(*cells[::-1]), Size(*size[::-1]), 8)
    picture = torch.rand(1, 2, *(32 * n for n in cells), generator=torch.Generator().manual_seed(0))
    whole = lanczos(picture, Grid.whole((cells[0], cells[1]), (size[0], size[1])).axes, 8, 32, 4.0)
    y, x = (data.draw(st.integers(0, n - 1), "first") for n in grid.tokens[::-1])
    tile = Box(x, y, *(data.draw(st.integers(1, n - k)) for n, k in zip(grid.tokens, (x, y), strict=True)))
    seen = grid.context_of(tile, 1.5)
    filled = data.draw(st.integers(0, 2), "filled")
    top, bottom, left, right = (32 * side for side in (seen.y, seen.bottom, seen.x, seen.right))
    crop = torch.nn.functional.pad(picture[:, :, top:bottom, left:right], (0, 32 * filled) * 2)
    part = Grid(
        *(torch.arange(n + filled) + k + 0.5 for n, k in ((seen.height, seen.y), (seen.width, seen.x))),
        *map(torch.from_numpy, grid.token_centres(tile)),
        torch.tensor(cells).float(),
        torch.tensor(grid.scale),
    )
    expected = whole[:, :, 8 * tile.y : 8 * tile.bottom, 8 * tile.x : 8 * tile.right]
    # Positions are rounded to float32, and noise changes much from pixel to pixel.
    assert torch.allclose(lanczos(crop, part.axes, 8, 32, 4.0), expected, atol=3e-4)


# The budget.


@pytest.mark.parametrize(("scale", "most"), [(1, 300e3), (2, 150e3), (4, 60e3)])
def test_the_edge_preset_keeps_its_budget(scale: int, most: float) -> None:
    """Multiply-adds an output pixel, for a tile of 64x64 tokens; the counter sees products and convolutions."""
    config = PRESETS["edge"]()
    model = InfGen(config).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 4e6
    enlargement = config.enlargement_for((scale, scale))
    cells = 64 // scale
    with torch.inference_mode():
        context = torch.zeros(1, config.context_channels(enlargement), cells + 4, cells + 4)
    grid = coordinates.Grid(Size(256, 256), Size(2048 * scale, 2048 * scale), 8)
    seen, tokens = Box(100, 100, cells + 4, cells + 4), Box(102 * scale, 102 * scale, 64, 64)
    inputs = tile_inputs(grid, context.numpy(), seen, tokens)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    decode = multiply_adds(lambda: model.decode(tensors.pop("context"), Grid(**tensors), enlargement))
    assert context_work(model, enlargement) / (8 * scale) ** 2 + decode / 512**2 <= most


# The config.


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert DecoderConfig.from_json(config.to_json()) == config


BAD_CONFIGS = {
    "heads": ({"heads": 3}, "with 3 heads, key_width 16 must divide by 12"),
    "no heads": ({"heads": 0}, "heads must be 1 to 4096, not 0"),
    "levels": ({"levels": (Level(8, 1),) * 4}, "4 levels enlarge by more than the patch of 8"),
    "level": ({"levels": (Level(8, 1), Level(0, 1))}, r"levels\[1\].width must be 1 to 4096, not 0"),
    "blocks": ({"token_blocks": -1}, "token_blocks must be 0 to 4096, not -1"),
    "trunk": ({"trunk": (Level(8, 1), Level(8, -1))}, r"trunk\[1\].blocks must be 0 to 4096, not -1"),
    "detail": ({"trunk": ()}, "detail needs a trunk that makes it and levels that use it"),
    "short trunk": ({"trunk": (Level(8, 1),) * 3}, "enlargements need a trunk of 4 levels, .*, not 3"),
    "no enlargements": ({"enlargements": ()}, "enlargements and detail need each other"),
    "factors": ({"enlargements": (Enlargement(4, 1), Enlargement(2, 1))}, r"rising factors, not \[4, 2\]"),
    "finish": ({"enlargements": (Enlargement(2, 1, finish=4),)}, r"above 2 can have a finish, not \[2\]"),
    "polish": ({"enlargements": (Enlargement(4, 1, polish=4),)}, r"with a finish can have a polish, not \[4\]"),
    "factor": ({"enlargements": (Enlargement(0, 1),)}, r"enlargements\[0\].factor must be 1 to 4096, not 0"),
    "radius": ({"radius": 0.0}, "radius must be above 0 and at most 16, or null"),
    "scales": ({"scale_range": (4.0, 0.5)}, "scale_range must be two rising numbers of"),
    "frequencies": ({"rotary": (0.0, 1.0)}, "rotary must be two rising numbers of"),
    "frame": ({"frame": "window"}, "frame must be one of image, cell, not 'window'"),
    "start": ({"start": "noise"}, "start must be one of mask, sampled, not 'noise'"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_impossible_models_are_refused_before_they_are_built(name: str) -> None:
    changes, text = BAD_CONFIGS[name]
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(tiny.EDGE, **changes)


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize(
    ("cells", "size", "tile"),
    [
        ((5, 7), (61, 43), None),
        ((5, 7), (31, 23), None),
        ((20, 18), (300, 333), Box(30, 35, 8, 7)),
        ((20, 18), (300, 333), Box(10, 12, 9, 8)),
        ((1, 1), (8, 8), None),
    ],
)
def test_what_fills_a_fixed_shape_changes_nothing(
    name: str, cells: tuple[int, int], size: tuple[int, int], tile: Box | None
) -> None:
    model = tiny.model(tiny.CONFIGS[name])
    grid = coordinates.Grid(Size(cells[1], cells[0]), Size(*size), 8)
    with torch.inference_mode():
        enlargement = model.config.enlargement_for(grid.scale)
        tokens = tile or grid.tokens.box
        seen = grid.context_of(tokens, model.config.radius)
        context = model.context(tiny.latent(*cells), enlargement).numpy()[:, :, *seen.slices]
        inputs = tile_inputs(grid, context, seen, tokens)
        filled = fill(inputs, Size(20, 21), Size(13, 14))
        expected, actual = (
            model.decode(tensors.pop("context"), Grid(**tensors, padded=padded), enlargement)
            for padded, tensors in (
                (flag, {key: torch.from_numpy(value) for key, value in values.items()})
                for flag, values in ((False, inputs), (True, filled))
            )
        )
    height, width = expected.shape[2:]
    assert actual.shape[2:] == (8 * 14, 8 * 13)
    assert not torch.allclose(actual[:, :, height:, :], torch.zeros(()))
    halo = 0 if tile is None or tile.bottom == grid.tokens.height else 8 * model.config.halo_tokens
    kept = (..., slice(height - halo), slice(width - halo))
    assert torch.allclose(actual[:, :, :height, :width][kept], expected[kept], atol=1e-5)
