"""Lines in a host's log."""

from __future__ import annotations

import logging

import pytest
import torch

from ltxkit.ltx_core.progress import log_note
from ltxkit.nodes.steps import describe_schedule


def test_a_line_carries_our_name_and_fits_a_console_of_windows(caplog: pytest.LogCaptureFixture):
    drawn = describe_schedule(torch.tensor([1.0, 0.909, 0.725, 0.421, 0.0]))
    assert any("\u2580" <= character <= "\u259f" for character in drawn)  # on the node
    with caplog.at_level(logging.INFO, "ltxkit"):
        log_note(drawn)
    (line,) = caplog.messages
    assert line == "LTXKit: 4 steps: 1, 0.909, 0.725, 0.421, 0"
    assert line.encode("cp1252")
