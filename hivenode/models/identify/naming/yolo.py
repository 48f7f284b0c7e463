"""Models of ultralytics: what their classes are for, and which version and size their blocks make them."""

from __future__ import annotations

from collections.abc import Iterable

from hivenode.models.identify.formats.torch_pickles import ALLOWED as TORCH

TASKS = {
    "DetectionModel": ("object_detection", ""), "SegmentationModel": ("image_segmentation", "-seg"),
    "ClassificationModel": ("image_classification", "-cls"), "PoseModel": ("pose_estimation", "-pose"),
    "OBBModel": ("oriented_object_detection", "-obb"), "RTDETRDetectionModel": ("object_detection", ""),
    "WorldModel": ("zero_shot_object_detection", "-world"), "YOLOEModel": ("zero_shot_object_detection", ""),
    "YOLOESegModel": ("image_segmentation", "-seg"), "SemanticSegmentationModel": ("image_segmentation", "-sem"),
    "DepthModel": ("depth_estimation", "-depth"),
}  # fmt: skip
"""Class -> task, and the ending of the name."""
VERSIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("RTDETRDecoder",), "rtdetr"),
    (("A2C2f",), "yolo12"),
    (("C3k2",), "yolo11"),
    (("v10Detect",), "yolov10"),
    (("SCDown",), "yolov10"),
    (("RepNCSPELAN4",), "yolov9"),
    (("ELAN1",), "yolov9"),
    (("C2f",), "yolov8"),
    (("C3", "Detect"), "yolov5u"),
)
"""Blocks that must all be there -> version; the first that fits."""
SIZES: dict[str, dict[tuple[float, float], str]] = {
    "yolov8": {(0.33, 0.25): "n", (0.33, 0.5): "s", (0.67, 0.75): "m", (1.0, 1.0): "l", (1.0, 1.25): "x"},
    "yolo11": {(0.5, 0.25): "n", (0.5, 0.5): "s", (0.5, 1.0): "m", (1.0, 1.0): "l", (1.0, 1.5): "x"},
    "yolo12": {(0.5, 0.25): "n", (0.5, 0.5): "s", (0.5, 1.0): "m", (1.0, 1.0): "l", (1.0, 1.5): "x"},
    "yolov10": {(0.33, 0.25): "n", (0.33, 0.5): "s", (0.67, 0.75): "m", (1.0, 1.0): "l", (1.0, 1.25): "x"},
    "yolov5u": {(0.33, 0.25): "n", (0.33, 0.5): "s", (0.67, 0.75): "m", (1.0, 1.0): "l", (1.33, 1.25): "x"},
}
"""Depth and width multiples -> size."""
_PARTS: tuple[tuple[str, str], ...] = (
    ("conv", "Conv Conv2 LightConv DWConv DWConvTranspose2d ConvTranspose Focus GhostConv RepConv ChannelAttention "
             "SpatialAttention CBAM Concat Index"),
    ("head", "Detect Segment OBB Pose Classify WorldDetect LRPCHead YOLOEDetect YOLOESegment RTDETRDecoder v10Detect "
             "Segment26 OBB26 Pose26 YOLOESegment26 SemanticSegment Depth"),
    ("block", "DFL Proto Proto26 HGStem HGBlock SPP SPPF C1 C2 C2f C3 C3x RepC3 C3TR C3Ghost GhostBottleneck "
              "Bottleneck BottleneckCSP ResNetBlock ResNetLayer MaxSigmoidAttnBlock C2fAttn ImagePoolingAttn "
              "ContrastiveHead BNContrastiveHead RepBottleneck RepCSP RepNCSPELAN4 ELAN1 AConv ADown SPPELAN CBLinear "
              "CBFuse C3f C3k2 C3k RepVGGDW CIB C2fCIB Attention PSABlock PSA C2PSA C2fPSA SCDown AAttn ABlock A2C2f "
              "SwiGLUFFN Residual SAVPE RealNVP"),
    ("transformer", "TransformerEncoderLayer AIFI TransformerLayer TransformerBlock MLPBlock MLP LayerNorm2d "
                    "MSDeformAttn DeformableTransformerDecoderLayer DeformableTransformerDecoder"),
    ("activation", "AGLU"),
)  # fmt: skip
ALLOWED: frozenset[str] = frozenset(
    TORCH
    | {f"ultralytics.nn.tasks.{name}" for name in TASKS}
    | {f"ultralytics.nn.modules.{module}.{name}" for module, names in _PARTS for name in names.split()}
    | {f"ultralytics.nn.modules.{name}" for _, names in _PARTS for name in names.split()}
    | {"ultralytics.utils.IterableSimpleNamespace"}
)
"""Modules have no `__setstate__` of their own beyond torch's, and are made without arguments."""


def version(blocks: Iterable[str]) -> str | None:
    """The version that has these blocks."""
    held = set(blocks)
    return next((name for marks, name in VERSIONS if held.issuperset(marks)), None)


def size(name: str, depth: float, width: float) -> str:
    """The letter of a size by its multiples; "" if it is none of the published ones."""
    return SIZES.get(name, {}).get((depth, width), "")
