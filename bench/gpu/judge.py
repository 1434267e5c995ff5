"""Compiled kernels against their budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.gpu.budget import Budget, broken, make_budget, not_launchable
from bench.gpu.compiled import Compiled

Key = tuple[str, str, int]


def judge(
    kernels: Sequence[Compiled],
    made_with: str,
    budgets_made_with: str,
    budgets: Mapping[str, Mapping[str, Mapping[str, Budget]]],
) -> tuple[dict[Key, list[str]], list[str]]:
    """What is wrong with each kernel, form and architecture (empty: nothing), and remarks on the whole.

    Registers and shared memory are the compiler's choice: under another version than the one the budgets
    were made with, only spills and what can't be launched are held against a kernel.
    """
    same = made_with == budgets_made_with
    remarks = [] if same else [f"budgets of {budgets_made_with}, here {made_with}: only spills and launches are held"]
    verdicts: dict[Key, list[str]] = {}
    for k in kernels:
        budget = budgets.get(k.kernel, {}).get(k.form, {}).get(str(k.facts.arch))
        if budget is None:
            found = ["no budget"]
        else:
            found = broken(k.facts, k.shared, budget if same else make_budget(k.facts, k.shared))
        verdicts[k.kernel, k.form, k.facts.arch] = found + not_launchable(k.facts, k.shared)
    return verdicts | _stale(kernels, budgets), remarks


def _stale(
    kernels: Sequence[Compiled], budgets: Mapping[str, Mapping[str, Mapping[str, Budget]]]
) -> dict[Key, list[str]]:
    """Budgets of kernels that are not there any more, on the architectures that were compiled."""
    there = {(k.kernel, k.form, k.facts.arch) for k in kernels}
    architectures = {arch for _, _, arch in there}
    listed = {(kernel, form, int(arch)) for kernel, forms in budgets.items() for form in forms for arch in forms[form]}
    return {key: ["budget without a kernel"] for key in listed - there if key[2] in architectures}
