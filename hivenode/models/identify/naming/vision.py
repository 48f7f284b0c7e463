"""State dicts of models that look at pictures."""

from __future__ import annotations

from hivenode.models.identify.naming.state_dicts import Guess, Names, Rule
from hivenode.models.identify.report import FREE, Confidence, Port

VISION = "computer_vision"
CLASSIFY = "image_classification"
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18, ((3, 4, 6, 3), False): 34, ((3, 4, 6, 3), True): 50, ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152, ((3, 24, 36, 3), True): 200, ((1, 1, 1, 1), False): 10, ((2, 2, 2, 2), True): 26,
}  # fmt: skip
DENSENETS: dict[tuple[int, ...], int] = {
    (6, 12, 24, 16): 121, (6, 12, 32, 32): 169, (6, 12, 48, 32): 201, (6, 12, 36, 24): 161,
}  # fmt: skip
CIFAR = {3: 20, 5: 32, 7: 44, 9: 56, 18: 110}
"""The three-stage networks of He et al. (2015), section 4.2: depth 6n + 2."""
VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant"}
VGG = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
YOLO_SIZES = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x", 96: "l"}


def _in_modules(names: Names, modules: set[str]) -> bool:
    """Whether there is a weight within a module that is called one of these, at any depth."""
    return any(name.endswith("weight") and not modules.isdisjoint(name.split(".")[:-1]) for name in names.shapes)


def _pictures(channels: int) -> tuple[Port, ...]:
    return (Port("input", "float32", (FREE, channels, FREE, FREE)),)


def _classes(names: Names, *heads: str) -> tuple[Port, ...]:
    for head in heads:
        shape = names.get(head)
        if shape:
            return (Port("output", "float32", (FREE, shape[0])),)
    return ()


def resnet(names: Names) -> Guess | None:
    """ResNet, ResNeXt and wide ones, as torchvision and timm name them."""
    prefix = names.prefix("layer1.0.conv1.weight")
    if prefix is None or not names.get(f"{prefix}layer2.0.conv1.weight"):
        return None
    part = names.under(prefix) if prefix else names
    stages = tuple(part.blocks(f"layer{stage}.") for stage in range(1, 5))
    deep = "layer1.0.conv3.weight" in part
    model, how = "resnet", Confidence.inferred
    depth = RESNETS.get((stages, deep))
    if depth is not None:
        model = _variant(part, depth, deep)
    elif not stages[3] and len(set(stages[:3])) == 1 and stages[0] in CIFAR:
        model = f"resnet{CIFAR[stages[0]]}"
    stem = part.get("conv1.weight") or part.get("conv1.0.weight")
    head = part.get("fc.weight") or part.get("linear.weight")
    segments = prefix.startswith("backbone.")
    detects = segments and names.has("rpn.")
    task = "object_detection" if detects else "image_segmentation" if segments else CLASSIFY if head else "embedding"
    return Guess(
        f"blocks per stage {stages}, {'bottleneck' if deep else 'basic'}",
        VISION,
        task,
        "cnn",
        f"fasterrcnn_{model}_fpn" if detects else model,
        how=how,
        layers=depth,
        sizes={"num_classes": head[0]} if head else {},
        inputs=_pictures(stem[1]) if len(stem) == 4 else (),
        outputs=_classes(part, "fc.weight", "linear.weight"),
    )


def _variant(part: Names, depth: int, deep: bool) -> str:
    middle = part.get("layer1.0.conv2.weight")
    if deep and len(middle) == 4:
        groups = middle[0] // max(1, middle[1])
        if groups > 1:
            return f"resnext{depth}_{groups}x{middle[1]}d"
        if middle[0] == 128:
            return f"wide_resnet{depth}_2"
    return f"resnet{depth}"


def vit(names: Names) -> Guess | None:
    """Vision transformers, as timm, torchvision and transformers name them."""
    layouts = (
        ("patch_embed.proj.weight", "blocks.", "head.weight"),
        ("conv_proj.weight", "encoder.layers.encoder_layer_", "heads.head.weight"),
        ("embeddings.patch_embeddings.projection.weight", "encoder.layer.", "classifier.weight"),
    )
    for stem, blocks, head in layouts:
        prefix = names.prefix(stem)
        shape = names.get(f"{prefix}{stem}") if prefix is not None else ()
        count = names.blocks(blocks)
        if len(shape) != 4 or not count or names.has("relative_position_bias_table"):
            continue
        if not (names.has("cls_token") or names.has("class_token") or names.has("embeddings.cls_token")):
            continue
        width, channels, patch = shape[0], shape[1], shape[2]
        size = VIT_WIDTHS.get(width)
        top = names.get(head) or names.get("head.weight")
        model = f"vit_{size}_patch{patch}" if size else f"vit_patch{patch}"
        if names.has("distillation_token") or names.has("dist_token"):
            model = model.replace("vit", "deit")
        return Guess(
            f"patch embedding {list(shape)}, {count} blocks",
            VISION,
            CLASSIFY if top else "embedding",
            "transformer",
            "ViTForImageClassification" if head == "classifier.weight" and top else model,
            layers=count,
            sizes={"hidden_size": width, "patch_size": patch, "num_hidden_layers": count}
            | ({"num_classes": top[0]} if top else {}),
            inputs=_pictures(channels),
            outputs=(Port("output", "float32", (FREE, top[0])),) if top else (),
        )
    return None


def yolo(names: Names) -> Guess | None:
    """YOLOv5 and YOLOv8, as ultralytics names them."""
    prefix = names.prefix("0.conv.weight")
    if prefix is None or not prefix.endswith("model."):
        return None
    width = names.get(f"{prefix}0.conv.weight")
    size = YOLO_SIZES.get(width[0], "") if width else ""
    if names.has("dfl.conv.weight"):
        eleven = names.has("model.10.m.0.attn.qkv.conv.weight") or names.has("10.m.0.attn.qkv.conv.weight")
        task = "object_detection"
        if names.has("proto.cv1.conv.weight"):
            task = "image_segmentation"
        elif names.has("cv4.0.0.conv.weight"):
            task = "pose_estimation"
        version = "yolo11" if eleven else "yolov8"
        return Guess("a head with distribution focal loss (dfl)", VISION, task, "cnn", f"{version}{size}")
    if names.prefix("anchors") is not None or names.has("24.m.0.weight"):
        return Guess("a head with anchors", VISION, "object_detection", "cnn", f"yolov5{size}")
    return None


def known_cnn(names: Names) -> Guess | None:
    """VGG, AlexNet, DenseNet, MobileNet, EfficientNet, Inception, ConvNeXt, SqueezeNet, Swin, U-Net."""
    model: str | None = None
    architecture, task, how = "cnn", CLASSIFY, Confidence.inferred
    if names.has("features.denseblock1.denselayer1."):
        stages = tuple(names.blocks_from_one(f"denseblock{stage}.denselayer") for stage in range(1, 5))
        depth = DENSENETS.get(stages)
        model = f"densenet{depth}" if depth else "densenet"
    elif names.has("features.0.weight") and names.has("classifier.6.weight"):
        convolutions = sum(1 for name, shape in names.matrices() if name.startswith("features.") and len(shape) == 4)
        model = "alexnet" if names.get("features.0.weight")[2:] == (11, 11) else VGG.get(convolutions, "vgg")
        if model.startswith("vgg") and names.has("features.1.running_mean"):
            model += "_bn"
    elif names.has("features.3.squeeze.weight"):
        model = "squeezenet"
    elif names.has("features.0.0.weight") and names.has("features.1.conv.0.0.weight"):
        model = "mobilenet_v2"
    elif names.has("features.1.block.0.0.weight") and names.has("classifier.3.weight"):
        model = "mobilenet_v3"
    elif names.has("features.1.0.block.0.0.weight") or names.has("_blocks.0._depthwise_conv.weight"):
        model = "efficientnet"
    elif names.has("Mixed_5b.branch1x1.conv.weight"):
        model = "inception_v3"
    elif names.has("inception3a.branch1.conv.weight"):
        model = "googlenet"
    elif names.has("features.1.0.layer_scale") or names.has("stages.0.blocks.0.gamma"):
        model = "convnext"
    elif names.has("layers.0.blocks.0.attn.relative_position_bias_table"):
        model, architecture = "swin", "transformer"
    elif names.has("repeat_1.0.conv0.conv.weight") or names.has("mixed_6a.branch0.conv.weight"):
        model, task = "inception_resnet_v1", "face_recognition"
    elif _in_modules(names, {"inc", "down1", "enc1", "encoder1"}) and _in_modules(
        names, {"up1", "dec1", "decoder1", "upconv1"}
    ):
        model, task = "unet", "image_segmentation"
    if model is None:
        return None
    heads = ("classifier.6.weight", "classifier.1.weight", "classifier.3.weight", "classifier.weight", "fc.weight")
    return Guess(
        "the names of its modules", VISION, task, architecture, model, how=how, outputs=_classes(names, *heads)
    )


def clip(names: Names) -> Guess | None:
    """CLIP, as OpenAI and transformers name it."""
    if names.has("logit_scale") and (names.has("visual.") or names.has("vision_model.")):
        return Guess(
            "a tower for pictures, one for text, and logit_scale", VISION, "zero_shot_image_classification",
            "transformer", "CLIPModel",
        )  # fmt: skip
    return None


RULES: tuple[Rule, ...] = (clip, resnet, vit, yolo, known_cnn)
