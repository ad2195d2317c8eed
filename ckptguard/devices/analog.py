"""Analog arrays: weights stored as conductances, which no stored bits describe; they change values.

A weight w of a tensor whose largest magnitude is M is stored in a pair of cells: one holds the conductance
low + (high - low) * |w| / M, the other one low; which is which is the sign. What is read is the difference of both,
scaled back. Each cell is programmed with a normal error, loses conductance by a power of time, and is read with noise.
A profile whose cells are `direct` has a normal error in units of M on the weight itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import NoiseKey
from ckptguard.channels.noise import stream_key
from ckptguard.devices.device import number, require_keys
from ckptguard.devices.expression import Expression
from ckptguard.devices.sheet import Parameter, Sheet, operating_point, sheets
from ckptguard.errors import SpecError
from ckptguard.spec import look_up

BLOCK_VALUES = 1 << 16
"""Random numbers are drawn per block of this many values of a tensor."""

FOLDER = "analog_profiles"

_CELLS = {"pair": True, "direct": False}
_FORMULAS = ("sigma", "drift", "drift_sigma", "read")
_GRID = 2049  # formulas are evaluated at so many conductances, and between them on straight lines

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AnalogProfile:
    """What an analog array does to weights.

    Attributes:
        name, summary, source, confidence, notes, parameters, presets: as of a `Profile`.
        low, high: conductances that 0 and the largest magnitude of a tensor are stored as, in microsiemens.
        cells: `pair` or `direct`, see the module.
        formulas: by name, of `g` (the cell's conductance in microsiemens), `x` (g / high) and the parameters. `sigma`:
            standard deviation of the error of programming; `drift`: factor's exponent, the conductance becomes
            g * time**-drift, `drift_sigma`: its standard deviation from cell to cell; `time`: a ratio, of the
            parameters alone; `read`: standard deviation of one reading. Conductances do not fall below 0.
    """

    name: str
    summary: str
    low: float
    high: float
    cells: str
    formulas: Mapping[str, Expression]
    parameters: Mapping[str, Parameter]
    presets: Mapping[str, Mapping[str, float]]
    source: str
    confidence: str
    notes: str

    def point(self, values: Mapping[str, float], preset: str | None = None) -> dict[str, float]:
        """The whole operating point; raise SpecError outside the ranges the profile holds in."""
        return operating_point(self.name, self.parameters, self.presets, values, preset)

    def read(
        self, weights: npt.NDArray[Any], point: Mapping[str, float], key: NoiseKey, *, largest: float | None = None
    ) -> Values:
        """What is read of a tensor's weights, as float64 of their shape; not finite ones are read as they are.

        Args:
            point: see `point`.
            key: `shard` names the tensor; with the place of a weight it determines what is drawn.
            largest: magnitude that `high` stands for, if not the largest finite one of `weights`.
        """
        given = np.asarray(weights, np.float64)
        flat = given.ravel()
        finite = np.isfinite(flat)
        most = float(np.abs(flat[finite]).max(initial=0.0)) if largest is None else largest
        if most == 0.0:
            return given.copy()
        stream = int(stream_key(key, f"analog {self.name}"))
        tables = self._tables(point)
        parts = []
        for block in range(0, flat.size, BLOCK_VALUES):
            share = np.where(finite[block : block + BLOCK_VALUES], flat[block : block + BLOCK_VALUES] / most, 0.0)
            draw = np.random.Generator(np.random.Philox(key=stream, counter=[0, 0, 0, block // BLOCK_VALUES]))
            parts.append(most * self._read_shares(np.clip(share, -1.0, 1.0), tables, draw))
        return np.where(finite, np.concatenate(parts), flat).reshape(given.shape)

    def _read_shares(self, shares: Values, tables: Mapping[str, Values], draw: np.random.Generator) -> Values:
        if not _CELLS[self.cells]:
            return shares + self._at(tables["sigma"], np.abs(shares)) * draw.standard_normal(shares.size)
        width = self.high - self.low
        positive, negative = (
            self._read_cells(self.low + width * np.maximum(side, 0.0), tables, draw) for side in (shares, -shares)
        )
        return (positive - negative) / width

    def _read_cells(self, g: Values, tables: Mapping[str, Values], draw: np.random.Generator) -> Values:
        g = np.maximum(g + self._at(tables["sigma"], g) * draw.standard_normal(g.size), 0.0)
        if "drift" in tables:
            exponent = self._at(tables["drift"], g)
            if "drift_sigma" in tables:
                exponent = exponent + self._at(tables["drift_sigma"], g) * draw.standard_normal(g.size)
            g = g * tables["time"] ** -np.maximum(exponent, 0.0)
        if "read" in tables:
            g = np.maximum(g + self._at(tables["read"], g) * draw.standard_normal(g.size), 0.0)
        return g

    def _at(self, table: Values, g: Values) -> Values:
        return np.interp(g, np.linspace(0.0, 1.5 * self.high, _GRID), table)

    def _tables(self, point: Mapping[str, float]) -> dict[str, Values]:
        tables = {}
        for name, formula in self.formulas.items():
            if name == "time":
                tables[name] = np.array(formula.at(point))
                continue
            grid = np.linspace(0.0, 1.5 * self.high, _GRID)
            grid[0] = grid[1] / 1000  # logarithms and negative powers have no value at 0
            tables[name] = np.array([formula.at({**point, "g": g, "x": g / self.high}) for g in grid.tolist()])
        return tables


def analog_profiles() -> tuple[str, ...]:
    """Names of all analog profiles, sorted."""
    return tuple(sorted(sheets(FOLDER)))


@lru_cache(maxsize=64)
def load_analog_profile(name: str) -> AnalogProfile:
    """Return an analog profile by its name; an unknown name lists the known ones."""
    return parse_analog_profile(name, look_up(sheets(FOLDER), name, "analog profile"))


def parse_analog_profile(name: str, text: str) -> AnalogProfile:
    """Read an analog profile from TOML text; raise SpecError where it is not one."""
    sheet = Sheet.parse(name, text, "analog profile", ("summary", "cells"), ("conductance", "formulas"))
    data, what = sheet.data, sheet.what
    look_up(_CELLS, data["cells"], f"cells of {what}")
    low, high = (number(value, f"conductance of {what}") for value in data["conductance"])
    if not 0 <= low < high:
        raise SpecError(f"conductance of {what} is a range from 0 or more up, not {low:g} .. {high:g}")
    return AnalogProfile(
        name,
        data["summary"],
        low,
        high,
        data["cells"],
        _formulas(data.get("formulas", {}), sheet.parameters, what),
        sheet.parameters,
        sheet.presets,
        data["source"],
        data["confidence"],
        sheet.notes,
    )


def _formulas(entries: Mapping[str, str], parameters: Mapping[str, Parameter], what: str) -> dict[str, Expression]:
    require_keys(entries, (*_FORMULAS, "time"), f"formulas of {what}")
    if "sigma" not in entries or ("drift" in entries) != ("time" in entries):
        raise SpecError(f"{what} needs the formula sigma, and either both of drift and time or none")
    formulas = {}
    for name, text in entries.items():
        formulas[name] = Expression.parse(text)
        known = (*parameters, *(() if name == "time" else ("g", "x")))
        require_keys(dict.fromkeys(sorted(formulas[name].names)), known, f"{name} of {what}")
    return formulas
