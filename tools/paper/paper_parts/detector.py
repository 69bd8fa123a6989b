"""Faster R-CNN (arXiv 1506.01497) of torchvision with a backbone for the budget."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

LITE0 = "weights/efficientnet_lite0/efficientnet-lite0-57934424.pth"
STRIDE_16 = 112
"""Channels of the last layers of EfficientNet-Lite0 at a sixteenth of the size."""


class SmallHead(nn.Module):
    """Features of a region for its class and box."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.fc, self.act = nn.Linear(channels * size * size, width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[R, channels, size, size] to [R, width]."""
        return self.act(self.fc(self.relu(self.norm(self.conv(x))).flatten(1)))  # type: ignore[no-any-return]


class RegionHead(nn.Module):
    """All that is computed of a region, so that one file holds it: features, then the scores of classes and boxes."""

    def __init__(self, features: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.features, self.predictor = features, predictor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, channels, size, size] to scores [R, classes] and boxes [R, 4 classes]."""
        return self.predictor(self.features(x))  # type: ignore[no-any-return]


class Stages(nn.Module):
    """A feature network cut at a sixteenth of the size."""

    out_channels = STRIDE_16

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 112, H / 16, W / 16]."""
        return self.layers(x)  # type: ignore[no-any-return]


def small_detector(classes: int, sizes: tuple[int, ...], root: Path | None) -> FasterRCNN:
    """One level of features; ImageNet weights where `root` has them. `sizes` are the short sides of training images."""
    from timm import create_model

    made = create_model("tf_efficientnet_lite0", pretrained=False)
    if root is not None and (root / LITE0).exists():
        made.load_state_dict(_as_timm(torch.load(root / LITE0, weights_only=True), made.state_dict()))
    backbone = Stages(nn.Sequential(made.conv_stem, made.bn1, *made.blocks[:5]))
    anchors = AnchorGenerator(sizes=((12, 24, 48, 96),), aspect_ratios=((0.7, 1.0, 1.4),))
    pool = MultiScaleRoIAlign(featmap_names=["0"], output_size=5, sampling_ratio=2)
    return FasterRCNN(
        backbone, num_classes=None, min_size=sizes, max_size=2 * max(sizes), rpn_anchor_generator=anchors,
        box_roi_pool=pool, box_head=RegionHead(SmallHead(STRIDE_16, 5, 256), FastRCNNPredictor(256, classes)),
        box_predictor=nn.Identity(),
        rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=200, rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100, box_batch_size_per_image=64, box_detections_per_img=60,
        image_mean=[0.498] * 3, image_std=[0.502] * 3,
    )  # fmt: skip


def full_detector(classes: int, weights: str | None) -> FasterRCNN:
    """ResNet-101 with a pyramid, as torchvision builds it, with batch norm that trains."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet101", weights=weights, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    detector = FasterRCNN(backbone, num_classes=classes)
    heads = detector.roi_heads
    heads.box_head, heads.box_predictor = RegionHead(heads.box_head, heads.box_predictor), nn.Identity()
    return detector


def _as_timm(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under timm's names: both hold the same layers in the same order."""
    ours = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    names = [k for k in wanted if not k.endswith("num_batches_tracked")]
    for name, value in zip(names, ours, strict=True):
        if wanted[name].shape != value.shape:
            raise ValueError(f"the weights do not fit: {name} is {tuple(wanted[name].shape)}, not {tuple(value.shape)}")
    return {**wanted, **dict(zip(names, ours, strict=True))}
