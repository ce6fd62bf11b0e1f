"""Pictures drawn at random."""

import numpy as np
import pytest
from PIL import Image

from infgen_training.drawn import SIZE, draw_picture, draw_pictures


def test_drawn_pictures_are_always_the_same_and_all_different() -> None:
    first, second = draw_pictures(2, 5, []), draw_pictures(2, 5, [])
    assert [picture.size for picture in first] == [SIZE] * 2
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in second]
    assert first[0].tobytes() != first[1].tobytes() != draw_pictures(1, 6, [])[0].tobytes()
    assert draw_pictures(0, 5, []) == []


@pytest.mark.parametrize("size", [(1, 1), (40, 7), (200, 300)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    photo = Image.radial_gradient("L").convert("RGB")
    for seed in range(5):
        picture = draw_picture(np.random.default_rng(seed), [photo], size)
        assert picture.size == size and picture.mode == "RGB"


def test_they_have_what_photographs_lack() -> None:
    pictures = [np.asarray(draw_picture(np.random.default_rng(seed), [], (256, 256))).astype(int) for seed in range(8)]
    vivid = np.mean([(np.ptp(pixels, axis=-1) >= 100).mean() for pixels in pictures])
    flat = np.mean([(np.abs(np.diff(pixels, axis=1)).max(-1) <= 1).mean() for pixels in pictures])
    edges = np.mean([(np.abs(np.diff(pixels, axis=1)).max(-1) >= 50).mean() for pixels in pictures])
    assert vivid > 0.3 and flat > 0.3 and edges > 0.01


def test_pieces_of_photographs_are_in_them() -> None:
    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))

    def roughness(photos: list[Image.Image]) -> float:
        drawn = [draw_picture(np.random.default_rng(seed), photos, (128, 128)) for seed in range(8)]
        return float(np.mean([np.abs(np.diff(np.asarray(picture).astype(int), axis=1)).mean() for picture in drawn]))

    assert roughness([grain]) > 1.3 * roughness([])
