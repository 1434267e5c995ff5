"""The preset `reference` against the published code: weights, loss terms, gradients, and prototype picks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import FOLDER, Golden
from torch import Tensor

from gkd_fast import ops
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PUBLISHED
from gkd_fast.methods.gkd.prototypes import dense_instances
from gkd_fast.methods.gkd.robust import robust_distilling

FILES = sorted(FOLDER.glob("*.npz"))
LOSSES = [path for path in FILES if "stage" in np.load(path)]
PICKS = [path for path in FILES if "teacher_0" in np.load(path) and path not in LOSSES]
PUBLISHED_NAMES = {
    "foreground": "loss_kd_point",
    "background": "loss_bg_point",
    "global": "loss_kd_pair",
    "soft": "loss_kd_soft",
}


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Within 1e-4 of the largest expected value."""
    expected = expected.to(actual.dtype)
    error = float((actual.detach() - expected).abs().max())
    scale = float(expected.abs().max())
    assert error <= 1e-4 * scale, f"{what}: expected within {1e-4 * scale:.3g}, off by {error:.3g}"


def test_every_file_is_checked() -> None:
    assert FILES, f"expected golden vectors in {FOLDER}"
    assert set(FILES) == {*LOSSES, *PICKS}


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_robust_distilling_matches_the_published_code(path: Path) -> None:
    golden = Golden(path)
    student, adapted = golden.maps("student", grad=True), golden.maps("adapted", grad=True)
    logits = golden.tensor("logits_student", grad=True)
    terms, omega = robust_distilling(
        student,
        adapted,
        golden.maps("teacher"),
        golden.instances(),
        golden.soft(logits),
        golden.bank(),
        golden.config,
        stage=golden.stage,
        kappa=golden.kappa,
    )
    assert_close(omega, golden.tensor("robust_weights").flatten(1), "robust weights")
    for ours, published in PUBLISHED_NAMES.items():
        if published in golden.values:
            assert_close(terms[ours], golden.tensor(published).sum(), ours)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, golden.tensor("total"), "total")

    total.backward()
    assert_close(logits.grad, golden.tensor("grad_logits_student"), "gradient of the logits")
    for name, maps in (("student", student), ("adapted", adapted)):
        for level, feature in enumerate(maps):
            if f"grad_{name}_{level}" in golden.values:
                expected = golden.tensor(f"grad_{name}_{level}")
                assert_close(feature.grad, expected, f"gradient of {name} map {level}")


@pytest.mark.parametrize("path", PICKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("alpha", [10, 1])
def test_prototype_picks_match_the_published_code(path: Path, alpha: int) -> None:
    values = np.load(path)
    config = Settings(**PUBLISHED, alpha=float(alpha))
    cases = [name.removeprefix("teacher_") for name in values.files if name.startswith("teacher_")]
    for case in cases:
        student, teacher = (
            F.normalize(torch.from_numpy(values[f"{space}_{case}"]), dim=1) for space in ("student", "teacher")
        )
        picks = ops.matching_pursuit(
            student[None],
            teacher[None],
            torch.tensor([len(student)]),
            picks=config.prototypes,
            alpha=config.alpha,
            repeat=config.repeat_picks,
            candidates=dense_instances(student, teacher, config)[None],
        )
        assert picks[0].tolist() == values[f"picks_{case}_alpha{alpha}"].tolist()
