import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from gkd_fast import ops


def test_faster_rcnn_detects_the_same(backend):
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=160, max_size=224, box_score_thresh=0.0
    ).eval()
    images = [torch.rand(3, 160, 200), torch.rand(3, 180, 150)]
    with torch.no_grad():
        want = model(images)
        pool = model.roi_heads.box_roi_pool
        model.roi_heads.box_roi_pool = ops.MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio)
        got = model(images)
    assert all(len(detections["boxes"]) > 0 for detections in want)
    torch.testing.assert_close(got, want)


def test_faster_rcnn_learns_the_same(backend):
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=160, max_size=224, rpn_post_nms_top_n_train=100
    ).train()
    images = [torch.rand(3, 160, 200), torch.rand(3, 180, 150)]
    boxes = torch.tensor([[20.0, 30.0, 90.0, 100.0], [60.0, 10.0, 140.0, 140.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in images]

    def step():
        model.zero_grad()
        torch.manual_seed(1)  # the samplers of proposals are random
        sum(model(images, targets).values()).backward()
        return [p.grad.clone() for p in model.backbone.parameters() if p.grad is not None]

    model.apply(lambda m: m.eval() if isinstance(m, torch.nn.BatchNorm2d) else None)
    want = step()
    pool = model.roi_heads.box_roi_pool
    model.roi_heads.box_roi_pool = ops.MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio)
    for a, b in zip(step(), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
