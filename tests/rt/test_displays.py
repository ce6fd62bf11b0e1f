import pytest

import infgen_rt
from infgen_rt.display.named import display_size, named_displays
from infgen_rt.errors import PlanError


def test_displays_are_held_as_people_hold_them() -> None:
    assert {display.kind for display in named_displays().values()} == {"laptop", "phone", "tablet", "monitor", "tv"}
    for name, display in named_displays().items():
        upright = display.kind == "phone" or name == "lg-dualup"
        assert (display.height > display.width) == upright, name
        assert min(display.size) >= 700 and max(display.size) <= 7680, name


def test_names_are_what_can_be_typed() -> None:
    for name, display in named_displays().items():
        assert name == name.lower() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-."), name
        assert infgen_rt.display_size(name) == display.size
    assert display_size(" MacBook Air 13 ") == display_size("macbook-air-13") == (2560, 1664)


@pytest.mark.parametrize(("name", "near"), [("iphone16", "iphone-16"), ("studio display 5k", "studio-display")])
def test_an_unknown_name_is_refused_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(PlanError, match=f"is unknown: did you mean .*{near}"):
        display_size(name)


def test_a_name_like_no_other_is_refused_with_where_to_look() -> None:
    with pytest.raises(PlanError, match="'abacus' is unknown: `infgen-rt displays` lists all"):
        display_size("abacus")
