"""Tables and numbers as people read them, and where a command writes."""

from __future__ import annotations

import io
import json
import sys

import pytest

from ckptguard.cli.output import Output, to_json
from ckptguard.report import numbers
from ckptguard.report.masks import short_mask
from ckptguard.report.table import pairs, table


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1048575, "1.0 MiB"), (1 << 70, "1024.0 EiB")],
)  # fmt: skip
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert numbers.size(count) == text


def test_counts_have_separators_and_the_right_noun() -> None:
    assert numbers.count(1, "bit") == "1 bit"
    assert numbers.count(12345, "bit") == "12,345 bits"
    assert numbers.count(2, "match", "matches") == "2 matches"
    assert numbers.rate(0) == "0"
    assert numbers.rate(2.0759e-4) == "2.08e-04"


def test_numbers_stand_right_and_names_left() -> None:
    text = table(("name", "bits", "rate"), [("0.bias", "7", "1.00e-02"), ("b", "1,234", "-")])
    assert text == "  name     bits      rate\n  0.bias      7  1.00e-02\n  b       1,234         -"


def test_hidden_rows_are_counted() -> None:
    assert table(("a",), [("x",)], hidden=1234).splitlines()[-1] == "  ... and 1,234 more (--json has all)"


def test_wide_characters_keep_columns_aligned() -> None:
    lines = table(("a", "b"), [("层.weight", "x"), ("w", "y")]).splitlines()
    assert lines[1] == "  层.weight  x"
    assert lines[2] == "  w          y"


def test_names_cannot_control_the_terminal_or_break_lines() -> None:
    text = table(("a", "b"), [("evil\x1b[2J\nname", "x")]) + pairs([("a", "b\rc")])
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\\x1b[2J\\nname" in text


def test_long_names_are_shortened_in_the_middle() -> None:
    name = "model." + "x" * 100 + ".weight"
    shown = table(("a", "b"), [(name, "x")]).splitlines()[1].split()[0]
    assert len(shown) <= 60
    assert shown.startswith("model.")
    assert shown.endswith(".weight")


@pytest.mark.parametrize(
    ("mask", "text"), [("1111", "all"), ("0000", "none"), ("1100", "top:2"), ("1010", "1010"), ("0011", "0011")]
)
def test_masks_are_said_shortly(mask: str, text: str) -> None:
    assert short_mask(mask) == text


def test_json_has_no_numbers_that_are_none() -> None:
    record = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}}
    assert json.loads(to_json(record)) == {"a": "nan", "b": ["inf", 1.5], "c": {"d": "-inf"}}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("quiet", "drawn"), [(False, True), (True, False)])
def test_progress_is_drawn_on_a_terminal_and_cleared(quiet: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Output(as_json=False, quiet=quiet) as output:
        output.progress("check", 1, 2)
        output.progress("check", 2, 2)
    assert ("check [##############################] 100 %" in terminal.getvalue()) is drawn
    assert terminal.getvalue().endswith("\r\x1b[K") is drawn


def test_progress_is_silent_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Output(as_json=False, quiet=False) as output:
        output.progress("check", 2, 2)
    assert isinstance(sys.stderr, io.StringIO)
    assert sys.stderr.getvalue() == ""
