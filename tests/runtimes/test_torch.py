"""PyTorch's own settings, which belong to the app."""

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch

from infgen_runtimes.torch import _FLOAT32, _threads


@pytest.fixture
def settings() -> Iterator[None]:
    """Those of an app that prefers speed."""
    conv, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, products.fp32_precision
    conv.fp32_precision, products.fp32_precision = "tf32", "tf32"
    yield
    conv.fp32_precision, products.fp32_precision = before


def precisions() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.usefixtures("settings")
def test_float32_is_exact_on_gpus_and_the_apps_settings_come_back() -> None:
    with _FLOAT32:
        with _FLOAT32:
            assert precisions() == ("ieee", "ieee") and torch.backends.cudnn.enabled
        assert precisions() == ("ieee", "ieee")
    assert precisions() == ("tf32", "tf32")


@pytest.mark.usefixtures("settings")
def test_threads_that_overlap_leave_the_apps_settings() -> None:
    inside = Barrier(2, timeout=60)
    first_left = Barrier(2, timeout=60)

    def first() -> None:
        with _FLOAT32:
            inside.wait()
        first_left.wait()

    thread = Thread(target=first)
    thread.start()
    with _FLOAT32:
        inside.wait()
        first_left.wait()
        assert precisions() == ("ieee", "ieee")
    thread.join()
    assert precisions() == ("tf32", "tf32") and torch.backends.cudnn.enabled


def test_threads_of_two_decoders_that_overlap_leave_the_apps_number() -> None:
    """The number of a new thread is that of the whole process."""
    before, found = torch.get_num_threads(), list[int]()
    inside, first_left = Barrier(2, timeout=60), Barrier(2, timeout=60)

    def first() -> None:
        with _threads(before + 1):
            inside.wait()
        first_left.wait()

    def second() -> None:
        with _threads(before + 1):
            inside.wait()
            first_left.wait()

    threads = [Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    new = Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert found == [before]
