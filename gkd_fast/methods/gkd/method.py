"""Global knowledge as a method beside the others (Tang et al., ECCV 2022, arXiv 2210.09022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.methods.base import Setup, Step
from gkd_fast.methods.gkd.robust import Adapters, robust_distilling
from gkd_fast.methods.gkd.settings import GKDSettings
from gkd_fast.pyramids import one_dtype


class GKD(nn.Module):
    """Similarity to the prototypes, and features and soft labels weighted by how far both spaces agree in it.

    Its adapters run in the precision around it and its operators take mixed dtypes, so that it alone is called with
    the networks' own maps instead of float32 ones.

    Attributes:
        objective: `robust_distilling`, or the same compiled.
        omega: robust weights [L,B] of the last step's instances.
    """

    takes_raw_maps = True

    def __init__(self, setup: Setup, config: GKDSettings) -> None:
        super().__init__()
        kernel = 3 if config.adapter == "3x3" else 1
        self.adapters = Adapters(setup.channels(setup.levels), kernel=kernel, relu=config.adapter_relu)
        self.settings, self.stage = config, setup.stage
        self.soft = bool(config.soft_weight) and "logits" in setup.offered
        self.parts = ("global", "foreground", "background", *(("soft",) if self.soft else ()))
        self.objective = robust_distilling
        self.omega: Tensor | None = None

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms ``global``, ``foreground``, ``background``, and ``soft`` where there are logits.

        Their sums over the processes that train together are the terms of the global batch.
        """
        device, exact = step.images.device.type, next(self.adapters.parameters()).dtype
        maps = step.student if torch.is_autocast_enabled(device) else [feature.to(exact) for feature in step.student]
        adapted = self.adapters(maps, step.units)
        soft = step.soft() if self.soft and step.soft else None
        other_sizes = {} if step.teacher is step.teacher_own else {"imitated": one_dtype(step.teacher)}
        with torch.autocast(device, enabled=False):
            terms, self.omega = self.objective(
                one_dtype(step.student),
                one_dtype(adapted),
                one_dtype(step.teacher_own),
                step.instances,
                soft,
                step.bank,
                self.settings,
                stage=self.stage,
                kappa=step.kappa,
                strides=(step.strides, step.teacher_strides),
                units=step.units,
                **other_sizes,
            )
        return terms
