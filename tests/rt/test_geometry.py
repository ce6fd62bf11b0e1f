from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infgen_rt.common.memory import format_bytes, parse_budget, parse_bytes
from infgen_rt.display.named import named_displays
from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import MAX_SIDE, Box, Fit, Size, fit, fixed_size, parse_box, parse_size, split

NATIVE = Size(1024, 512)


@given(length=st.integers(1, 5000), longest=st.integers(1, 700))
def test_split_covers_in_balanced_parts(length: int, longest: int) -> None:
    edges = split(length, longest)
    parts = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    assert edges[0] == 0 and edges[-1] == length
    assert max(parts) <= longest and 0 < min(parts) >= max(parts) - 3
    assert longest == 1 or all(part % 2 == 0 for part in parts[:-1])
    assert len(parts) == (1 if length <= longest else -(-length // max(longest - longest % 2, 1)))


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, (1024, 512)),
        ((300, 200), (300, 200)),
        ("3840x2160", (3840, 2160)),
        ("3840\N{MULTIPLICATION SIGN}2160", (3840, 2160)),
        (" 1080P ", (1920, 1080)),
        ("1440p", (2560, 1440)),
        ("4k", (3840, 2160)),
        ("8K", (7680, 4320)),
        ("2x", (2048, 1024)),
        ("1.5x", (1536, 768)),
        (0.5, (512, 256)),
        ("x2160", (4320, 2160)),
        ("3840x", (3840, 1920)),
    ],
)
def test_sizes(value: object, size: tuple[int, int]) -> None:
    assert parse_size(value, NATIVE) == size


@pytest.mark.parametrize(
    "value",
    ["", "big", "0x10", "10x0", "-3x4", "0x", "-2x", "1920x1080x3", (0, 5), (5, -1), (5,), (1.5, 2), 0, -1.0]
    + [float("nan"), float("inf"), "63x99999999", f"{MAX_SIDE + 1}x8", "1e9x"],
)
def test_bad_sizes_are_refused(value: object) -> None:
    with pytest.raises(PlanError, match="size"):
        parse_size(value, NATIVE)


@pytest.mark.parametrize("value", ["iphone-16", named_displays()["iphone-16"]])
def test_a_display_instead_of_its_size_is_told_what_gives_it(value: object) -> None:
    with pytest.raises(PlanError, match=r"display_size\(NAME\)"):
        parse_size(value, NATIVE)


@pytest.mark.parametrize(
    ("text", "size"), [(" 4K", (3840, 2160)), ("30x20", (30, 20)), ("2x", None), ("x20", None), ("30x", None)]
)
def test_sizes_that_do_not_depend_on_the_latent(text: str, size: tuple[int, int] | None) -> None:
    assert fixed_size(text) == size


SIZES = st.builds(Size, st.integers(1, 4000), st.integers(1, 4000))


@given(native=SIZES, display=SIZES)
def test_a_picture_that_covers_leaves_nothing_empty_and_is_seen_in_its_middle(native: Size, display: Size) -> None:
    assume(max(display.width * native.height / native.width, display.height * native.width / native.height) < MAX_SIDE)
    size, seen = fit(native, display, "cover")
    assert seen.size == display and seen.intersect(size.box) == seen
    assert size.width == display.width or size.height == display.height
    assert abs(size.width - seen.right - seen.x) <= 1 and abs(size.height - seen.bottom - seen.y) <= 1
    assert_shape_kept(native, size)


@given(native=SIZES, display=SIZES)
def test_a_picture_that_is_contained_is_the_largest_that_is_seen_whole(native: Size, display: Size) -> None:
    size, seen = fit(native, display, "contain")
    assert seen == size.box and seen.intersect(display.box) == seen
    assert size.width == display.width or size.height == display.height
    assert_shape_kept(native, size)


def assert_shape_kept(native: Size, size: Size) -> None:
    """One side follows from the other, rounded; no side is less than a pixel."""
    across, down = size.height * native.width / native.height, size.width * native.height / native.width
    assert abs(size.width - max(1, across)) <= 0.5 or abs(size.height - max(1, down)) <= 0.5


@given(native=SIZES, display=SIZES)
def test_a_stretched_picture_is_the_display(native: Size, display: Size) -> None:
    assert fit(native, display, "stretch") == (display, display.box)


@pytest.mark.parametrize("how", get_args(Fit))
def test_a_picture_of_the_displays_shape_fits_in_every_way(how: Fit) -> None:
    assert fit(NATIVE, (3000, 1500), how) == ((3000, 1500), (0, 0, 3000, 1500))


@pytest.mark.parametrize("size", ["100000000x1", "2000000000x2", "x2000000000000", "99999999999999x", "99999999999.5x"])
def test_a_huge_size_is_understood_and_out_of_bounds(size: str) -> None:
    with pytest.raises(PlanError, match="out of bounds"):
        parse_size(size, NATIVE)


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(PlanError, match="out of bounds"):
        fit(NATIVE, (0, 100), "contain")
    with pytest.raises(PlanError, match="out of bounds"):
        fit(NATIVE, (100, MAX_SIDE), "cover")
    with pytest.raises(PlanError, match="expected cover, contain or stretch"):
        fit(NATIVE, (100, 100), "crop")


@pytest.mark.parametrize(
    "value", ["1,2,3", "a,b,c,d", "0,0,0,5", "-1,0,5,5", "1020,0,5,5", (0, 0, 5, 513), "1,2,3,4,5", 7]
)
def test_bad_regions_are_refused(value: object) -> None:
    with pytest.raises(PlanError, match="region"):
        parse_box(value, NATIVE)


def test_region_may_touch_the_edges() -> None:
    assert parse_box("0,0,1024,512", NATIVE) == NATIVE.box
    assert parse_box((1023, 511, 1, 1), NATIVE) == Box(1023, 511, 1, 1)


def test_boxes() -> None:
    box = Box(2, 3, 10, 20)
    assert box.intersect(Box(5, 0, 100, 5)) == (5, 3, 7, 2)
    assert box.intersect(Box(50, 50, 1, 1)).size.area == 0
    assert box.grow(4, Size(13, 100).box) == (0, 0, 13, 27)
    assert box.relative_to(Box(1, 1, 99, 99)) == (1, 2, 10, 20)
    assert box.relative_to(Box(1, 1, 99, 99)).placed_in(Box(1, 1, 99, 99)) == box
    assert str(box) == "2,3,10,20" and str(box.size) == "10x20"


@pytest.mark.parametrize(
    ("text", "amount"),
    [("1GiB", 2**30), ("512 MiB", 2**29), ("1.5kb", 1500), ("800m", 800_000_000), (4096, 4096), ("2K", 2000)],
)
def test_memory_amounts(text: str | int, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "0", "1XiB", "1 GiB 2"])
def test_bad_memory_amounts_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="memory"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("2", "did you mean 2GiB"), (512, "did you mean 512MiB"), ("999kB", "expected an amount such as 1GiB")],
)
def test_a_budget_without_a_unit_is_refused(amount: str | int, text: str) -> None:
    with pytest.raises(PlanError, match=rf"memory of [\d,]+ bytes is less than any picture needs: {text}"):
        parse_budget(amount)
    assert parse_budget("1MB") == 10**6


def test_memory_is_printed_in_its_unit() -> None:
    assert (format_bytes(3 * 2**20), format_bytes(3 * 2**29)) == ("3.0 MiB", "1.50 GiB")
