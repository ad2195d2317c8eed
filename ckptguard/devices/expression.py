"""Formulas of device profiles: `1.48e-3 + 3.90e-10 * pe^2.05`, read into a tree and evaluated, never run as code.

    sum      product, then any number of "+ product" or "- product"
    product  factor, then any number of "* factor" or "/ factor"
    factor   "-" factor, or atom, or atom "^" factor
    atom     number, name, function "(" sum "," sum ... ")", or "(" sum ")"

Names are parameters and the quantities defined before. `0^0` is 1. Functions are those of `FUNCTIONS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckptguard.errors import SpecError
from ckptguard.spec import suggestion

_TOKEN = re.compile(r"\s*(?:([0-9.]+(?:[eE][+-]?[0-9]+)?)|([A-Za-z_][A-Za-z0-9_]*)|([-+*/^(),]))")


def _normal_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


FUNCTIONS: Mapping[str, tuple[int, Callable[..., float]]] = {
    "abs": (1, abs),
    "exp": (1, math.exp),
    "floor": (1, math.floor),
    "ln": (1, math.log),
    "max": (2, max),
    "min": (2, min),
    "Q": (1, _normal_tail),
    "sqrt": (1, math.sqrt),
    "step": (1, lambda x: 1.0 if x >= 0 else 0.0),
}
"""Every function: how many arguments it takes, and what it is. Q is the upper tail of the standard normal distribution,
step(x) is 1 where x >= 0 and 0 elsewhere."""


@dataclass(frozen=True)
class Expression:
    """A formula, and the names it needs.

    Attributes:
        text: as it was written.
        names: that have to be given to `at`.
    """

    text: str
    names: frozenset[str]
    _steps: tuple[float | str | tuple[int, Callable[..., float]], ...]

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read a formula; raise SpecError that says what was expected where."""
        reader = _Reader(text)
        reader.sum()
        if reader.here:
            raise reader.error("an operator")
        return cls(text, frozenset(step for step in reader.steps if isinstance(step, str)), tuple(reader.steps))

    def at(self, values: Mapping[str, float]) -> float:
        """Its value; raise SpecError where it has none."""
        stack: list[float] = []
        for step in self._steps:
            if isinstance(step, tuple):
                count, function = step
                arguments = stack[len(stack) - count :]
                del stack[len(stack) - count :]
                try:
                    stack.append(function(*arguments))
                except (ValueError, ArithmeticError):
                    raise SpecError(f"{self.text!r} has no value at {dict(values)}") from None
            else:
                stack.append(values[step] if isinstance(step, str) else step)
        (value,) = stack
        if isinstance(value, complex) or not math.isfinite(value):
            raise SpecError(f"{self.text!r} has no finite value at {dict(values)}")
        return float(value)


class _Reader:
    """Recursive descent; what is read becomes steps of a stack machine, operands before operators."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.steps: list[float | str | tuple[int, Callable[..., float]]] = []
        self.tokens = self._split()
        self.place = 0

    @property
    def here(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def error(self, expected: str) -> SpecError:
        found = f"{self.here!r}" if self.here else "the end"
        return SpecError(f"formula {self.text!r}: expected {expected}, found {found}")

    def sum(self) -> None:
        self.product()
        while self.here in ("+", "-"):
            operator = self._next()
            self.product()
            self.steps.append((2, float.__add__ if operator == "+" else float.__sub__))

    def product(self) -> None:
        self.factor()
        while self.here in ("*", "/"):
            operator = self._next()
            self.factor()
            self.steps.append((2, float.__mul__ if operator == "*" else float.__truediv__))

    def factor(self) -> None:
        if self.here == "-":
            self._next()
            self.factor()
            self.steps.append((1, float.__neg__))
            return
        self.atom()
        if self.here == "^":
            self._next()
            self.factor()
            self.steps.append((2, math.pow))

    def atom(self) -> None:
        token = self._next() if self.here and self.here not in "+*/^)," else ""
        if token == "(":
            self.sum()
            self._expect(")")
        elif token[:1].isdigit() or token[:1] == ".":
            try:
                self.steps.append(float(token))
            except ValueError:
                raise SpecError(f"formula {self.text!r}: {token!r} is not a number") from None
        elif token and self.here == "(":
            self._call(token)
        elif token:
            self.steps.append(token)
        else:
            raise self.error("a number, a name, a function or '('")

    def _call(self, name: str) -> None:
        if name not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            raise SpecError(
                f"formula {self.text!r}: unknown function {name!r}{suggestion(name, FUNCTIONS)}; known: {known}"
            )
        count, function = FUNCTIONS[name]
        self._expect("(")
        for argument in range(count):
            if argument:
                self._expect(",")
            self.sum()
        self._expect(")")
        self.steps.append((count, lambda *values: float(function(*values))))

    def _next(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _expect(self, token: str) -> None:
        if self.here != token:
            raise self.error(repr(token))
        self._next()

    def _split(self) -> list[str]:
        tokens, at = [], 0
        text = self.text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise SpecError(f"formula {self.text!r}: {text[at:].lstrip()[:1]!r} means nothing here")
            tokens.append(found.group().strip())
            at = found.end()
        return tokens
