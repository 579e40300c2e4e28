"""What processes log of an error that nobody expected."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging
from fedsea_mq.entry import configure_logging
from fedsea_mq.settings import LogSettings
configure_logging(LogSettings(format={form!r}))
def fails(state):
    raise ArithmeticError("with a reason")
try:
    fails("the state " * 2)
except ArithmeticError:
    logging.getLogger("asyncio").exception("unexpected")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_error_is_logged_without_the_variables_of_those_that_raised_it(form: str) -> None:
    script = SCRIPT.format(form=form)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "unexpected" in done.stderr
    assert "with a reason" in done.stderr
    assert "the state the state" not in done.stderr
