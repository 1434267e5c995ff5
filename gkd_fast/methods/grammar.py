"""The notation of methods: ``gkd``, ``fgd@20``, ``gkd+fgfi+robust``, ``recommended``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from gkd_fast.errors import InputError
from gkd_fast.methods.names import MASKED, NAMES
from gkd_fast.methods.settings import Settings

ROBUST = "robust"
RECOMMENDED = "gkd+fgfi+robust"  # docs/results/pays.md has the comparison
_ALIASES = {"recommended": RECOMMENDED}
_GLOBAL_KNOWLEDGE = ("global_weight", "foreground_weight", "background_weight", "soft_weight")


@dataclass(frozen=True)
class Method:
    """Methods that distil together, each with the factor by which all its weights are multiplied.

    Attributes:
        factors: (name, factor) of each.
        robust: whether the methods with masks weigh every box by its robust weight (paper, robust distilling).
    """

    factors: tuple[tuple[str, float], ...]
    robust: bool = False

    @classmethod
    def parse(cls, text: str, option: str = "method") -> Self:
        """Read ``NAME[@FACTOR][+NAME[@FACTOR]...][+robust]``; ``recommended`` stands for several of these.

        Args:
            text: to read.
            option: what the text was given as, for messages.

        Raises:
            InputError: for another form, an unknown name, a name given twice, or a factor that is not positive.
        """
        parts = [own for part in text.split("+") for own in _ALIASES.get(part.strip(), part.strip()).split("+")]
        factors: dict[str, float] = {}
        for part in parts:
            name, at, factor = part.partition("@")
            if part == ROBUST:
                continue
            if name not in NAMES:
                raise InputError(
                    f"{option}: expected names of {', '.join(NAMES)} joined by '+', each with or without @FACTOR, "
                    f"{ROBUST!r} for masks with robust weights, or 'recommended' ({RECOMMENDED}); got {text!r}"
                )
            if name in factors:
                raise InputError(f"{option}: expected every name once, got {text!r}")
            factors[name] = _factor(factor, text, option) if at else 1.0
        if ROBUST in parts and not set(factors) & set(MASKED):
            raise InputError(f"{option}: {ROBUST} expects one of {', '.join(MASKED)}, got {text!r}")
        return cls(tuple(factors.items()), ROBUST in parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the methods, in the order given."""
        return tuple(name for name, _ in self.factors)

    @property
    def text(self) -> str:
        """The shortest text that `parse` reads as this method."""
        names = [name if factor == 1 else f"{name}@{factor:.12g}" for name, factor in self.factors]
        return "+".join(names + [ROBUST] * self.robust)

    def applied(self, settings: Settings) -> Settings:
        """Settings for these methods alone: plain names, their weights times the factors, the masks robust or not."""
        changes: dict[str, Any] = {"method": "+".join(self.names)}
        for name, factor in self.factors:
            for field in _weights(name):
                weight = getattr(settings, field)
                changes[field] = (
                    tuple(factor * item for item in weight) if isinstance(weight, tuple) else factor * weight
                )
        return dataclasses.replace(settings, **changes, robust_masks=settings.robust_masks or self.robust)


def resolved(settings: Settings, option: str = "method") -> Settings:
    """Settings with the factors of their own ``method`` in the weights.

    Raises:
        InputError: as `Method.parse`.
    """
    return Method.parse(settings.method, option).applied(settings)


def _weights(name: str) -> tuple[str, ...]:
    if name == "gkd":
        return _GLOBAL_KNOWLEDGE
    fields = (field.name for field in dataclasses.fields(Settings))
    return tuple(field for field in fields if field.startswith(f"{name}_") and field.endswith("weight"))


def _factor(text: str, method: str, option: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise InputError(f"{option}: expected a positive number behind '@', got {method!r}")
    return factor
