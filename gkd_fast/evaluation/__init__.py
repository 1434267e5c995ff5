"""Average precision by the COCO and the PASCAL VOC rules."""

from gkd_fast.evaluation.coco import evaluate_coco
from gkd_fast.evaluation.voc import evaluate_voc

__all__ = ["evaluate_coco", "evaluate_voc"]
