"""What the exporter silences while a converter works."""

import logging

import pytest

from infgen_export.quiet import quiet


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_what_the_program_has_silenced_stays_silent(level: int) -> None:
    logging.disable(level)
    try:
        with quiet():
            assert logging.root.manager.disable >= logging.WARNING
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)
