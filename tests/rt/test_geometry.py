import pytest
from hypothesis import given
from hypothesis import strategies as st

from infgen_rt.errors import PlanError
from infgen_rt.geometry import MAX_SIDE, Box, Size, parse_box, parse_size, split
from infgen_rt.memory import format_bytes, parse_bytes

NATIVE = Size(1024, 512)


@given(length=st.integers(1, 5000), longest=st.integers(1, 700))
def test_split_covers_in_balanced_parts(length: int, longest: int) -> None:
    edges = split(length, longest)
    parts = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    assert edges[0] == 0 and edges[-1] == length
    assert max(parts) <= longest and max(parts) - min(parts) <= 1
    assert len(parts) == -(-length // longest)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, (1024, 512)),
        ((300, 200), (300, 200)),
        ("3840x2160", (3840, 2160)),
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


def test_memory_is_printed_in_its_unit() -> None:
    assert (format_bytes(3 * 2**20), format_bytes(3 * 2**29)) == ("3.0 MiB", "1.50 GiB")
