"""How the threads of torch wait for each other, which OpenMP's runtime reads once, when it is loaded."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping

_SPINS = "10000"  # rounds of a few nanoseconds: longer than threads of a free processor are apart
_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning(environment: MutableMapping[str, str]) -> bool:
    """Have GNU OpenMP's threads sleep after a short while at a barrier, unless the user chose a policy.

    By itself it spins for minutes, so that a thread whose processor another program holds keeps all others from
    working. Other OpenMP runtimes do not know the variable.

    Args:
        environment: of this process, before torch is loaded.

    Returns:
        Whether the policy was set.
    """
    if "torch" in sys.modules or any(name in environment for name in _POLICIES):
        return False
    environment["GOMP_SPINCOUNT"] = _SPINS
    return True
