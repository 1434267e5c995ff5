"""The distillation methods of a study, each written as one word: ``gkd``, ``fgd@20``, ``gkd+fgfi+robust``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

from gkd_fast.config import DistillConfig
from gkd_fast.config_terms import MASKED_TERMS, TERMS
from gkd_fast.errors import InputError

CONTROL = "control"
ROBUST = "robust"
_GLOBAL_KNOWLEDGE = ("global_weight", "foreground_weight", "background_weight", "soft_weight")


@dataclass(frozen=True)
class Method:
    """Terms, each with the factor by which all its weights are multiplied.

    Attributes:
        factors: (name, factor) of each term.
        robust: whether the terms with masks weigh every box by its robust weight (paper, robust distilling).
    """

    factors: tuple[tuple[str, float], ...]
    robust: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME[@FACTOR][+NAME[@FACTOR]...][+robust]``.

        Raises:
            InputError: for another form, an unknown name, a name given twice, or a factor that is not positive.
        """
        parts = text.split("+")
        factors: dict[str, float] = {}
        for part in parts:
            name, at, factor = part.partition("@")
            if part == ROBUST:
                continue
            if name not in TERMS:
                raise InputError(
                    f"--methods: expected names of {', '.join(TERMS)} joined by '+', each with or without @FACTOR, "
                    f"and {ROBUST!r} for masks with robust weights; got {text!r}"
                )
            if name in factors:
                raise InputError(f"--methods: expected every name once, got {text!r}")
            factors[name] = _factor(factor, text) if at else 1.0
        if ROBUST in parts and not set(factors) & set(MASKED_TERMS):
            raise InputError(f"--methods: {ROBUST} expects one of {', '.join(MASKED_TERMS)}, got {text!r}")
        return cls(tuple(factors.items()), ROBUST in parts)

    @property
    def name(self) -> str:
        """The shortest text that `parse` reads as this method."""
        names = [name if factor == 1 else f"{name}@{factor:.12g}" for name, factor in self.factors]
        return "+".join(names + [ROBUST] * self.robust)

    def applied(self, config: DistillConfig) -> DistillConfig:
        """A configuration that distils by this method: its terms, with their weights times the factors."""
        changes: dict[str, object] = {"terms": "+".join(name for name, _ in self.factors)}
        for name, factor in self.factors:
            for field in _weights(name):
                weight = getattr(config, field)
                changes[field] = (
                    tuple(factor * item for item in weight) if isinstance(weight, tuple) else factor * weight
                )
        return dataclasses.replace(config, **changes, robust_masks=config.robust_masks or self.robust)


def parse_methods(texts: tuple[str, ...]) -> tuple[Method, ...]:
    """Read the methods of a study.

    Raises:
        InputError: for none, for one that cannot be read, for two that are the same.
    """
    methods = tuple(Method.parse(text) for text in texts if text != CONTROL)
    if not methods:
        raise InputError("--methods: expected at least one method beside the control, got none")
    if len(set(methods)) < len(methods):
        raise InputError(f"--methods: expected every method once, got {' '.join(texts)}")
    return methods


def _weights(name: str) -> tuple[str, ...]:
    if name == "gkd":
        return _GLOBAL_KNOWLEDGE
    fields = (field.name for field in dataclasses.fields(DistillConfig))
    return tuple(field for field in fields if field.startswith(f"{name}_") and field.endswith("weight"))


def _factor(text: str, method: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise InputError(f"--methods: expected a positive number behind '@', got {method!r}")
    return factor
