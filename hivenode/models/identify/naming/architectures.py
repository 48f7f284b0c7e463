"""Class names and what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from hivenode.models.identify.report import Confidence, Report

NLP, VISION, AUDIO, TABULAR, AGENT, OTHER = (
    "nlp", "computer_vision", "audio", "tabular", "reinforcement_learning", "other",
)  # fmt: skip


class Known(NamedTuple):
    """What a class is for."""

    family: str | None
    task: str | None
    architecture: str | None


SUFFIXES: tuple[tuple[str, str, str], ...] = (
    ("ForSequenceClassification", NLP, "text_classification"),
    ("ForTokenClassification", NLP, "token_classification"),
    ("ForQuestionAnswering", NLP, "question_answering"),
    ("ForQuestionAnsweringSimple", NLP, "question_answering"),
    ("ForMultipleChoice", NLP, "multiple_choice"),
    ("ForNextSentencePrediction", NLP, "next_sentence_prediction"),
    ("ForMaskedLM", NLP, "fill_mask"),
    ("ForPreTraining", NLP, "fill_mask"),
    ("ForCausalLM", NLP, "text_generation"),
    ("LMHeadModel", NLP, "text_generation"),
    ("WithLMHeadModel", NLP, "text_generation"),
    ("ForSpeechSeq2Seq", AUDIO, "speech_recognition"),
    ("ForCTC", AUDIO, "speech_recognition"),
    ("ForAudioClassification", AUDIO, "audio_classification"),
    ("ForTextToWaveform", AUDIO, "text_to_speech"),
    ("ForAudioFrameClassification", AUDIO, "audio_frame_classification"),
    ("ForXVector", AUDIO, "speaker_verification"),
    ("ForConditionalGeneration", NLP, "text2text_generation"),
    ("ForImageClassification", VISION, "image_classification"),
    ("ForImageClassificationWithTeacher", VISION, "image_classification"),
    ("ForObjectDetection", VISION, "object_detection"),
    ("ForZeroShotObjectDetection", VISION, "zero_shot_object_detection"),
    ("ForSemanticSegmentation", VISION, "image_segmentation"),
    ("ForInstanceSegmentation", VISION, "image_segmentation"),
    ("ForUniversalSegmentation", VISION, "image_segmentation"),
    ("ForImageSegmentation", VISION, "image_segmentation"),
    ("ForMaskedImageModeling", VISION, "masked_image_modeling"),
    ("ForDepthEstimation", VISION, "depth_estimation"),
    ("ForKeypointDetection", VISION, "keypoint_detection"),
    ("ForImageToImage", VISION, "image_to_image"),
    ("ForVideoClassification", VISION, "video_classification"),
    ("ForVision2Seq", VISION, "image_to_text"),
    ("ForImageTextToText", VISION, "image_to_text"),
    ("ForVisualQuestionAnswering", VISION, "visual_question_answering"),
    ("ForPrediction", TABULAR, "time_series_forecasting"),
    ("ForTimeSeriesClassification", TABULAR, "time_series_classification"),
    ("ForProteinFolding", OTHER, "protein_folding"),
    ("EncoderModel", NLP, "embedding"),
)
"""Endings of transformers' classes; the longest that fits counts."""
SPOKEN = ("Whisper", "SpeechT5", "Speech2Text", "Moonshine", "SeamlessM4T", "Bark", "MusicgenFor", "Wav2Vec2", "Hubert")
SEEN = ("Llava", "Blip", "PaliGemma", "Idefics", "Qwen2VL", "Qwen2_5_VL", "Florence", "Kosmos", "Pix2Struct", "Mllama",
        "VisionEncoderDecoder", "InstructBlip", "Donut")  # fmt: skip
PICTURES = ("ViT", "Swin", "Beit", "Deit", "DeiT", "ConvNext", "ResNet", "Dinov2", "CLIPVision", "Segformer", "Detr",
            "MobileNet", "MobileViT", "EfficientNet", "Yolos", "RegNet", "SamModel", "CLIPModel", "Siglip")  # fmt: skip
SOUNDS = ("Wav2Vec2", "Hubert", "WavLM", "Whisper", "Encodec", "AST", "Clap", "Data2VecAudio", "UniSpeech")
CONVOLUTIONS = ("ResNet", "ConvNext", "RegNet", "MobileNetV", "EfficientNet", "Bit", "VGG", "DenseNet", "Inception")
DIFFUSION = ("UNet2D", "UNet", "Transformer2DModel", "DiTTransformer", "ControlNet", "StableDiffusion", "DDPM", "Flux")
OWN: dict[str, Known] = {
    "DetectionModel": Known(VISION, "object_detection", "cnn"),
    "SegmentationModel": Known(VISION, "image_segmentation", "cnn"),
    "PoseModel": Known(VISION, "pose_estimation", "cnn"),
    "AutoencoderKL": Known(VISION, "image_to_image", "autoencoder"),
    "VQModel": Known(VISION, "image_to_image", "autoencoder"),
    "DQN": Known(AGENT, "q_learning", "dqn"),
    "Generator": Known(VISION, "image_generation", "gan"),
    "Discriminator": Known(VISION, "image_generation", "gan"),
    "TabNet": Known(TABULAR, None, "neural_network"),
    "FasterRCNN": Known(VISION, "object_detection", "cnn"),
    "MaskRCNN": Known(VISION, "image_segmentation", "cnn"),
    "RetinaNet": Known(VISION, "object_detection", "cnn"),
    "SSD": Known(VISION, "object_detection", "cnn"),
    "FCN": Known(VISION, "image_segmentation", "cnn"),
    "DeepLabV3": Known(VISION, "image_segmentation", "cnn"),
    "VisionTransformer": Known(VISION, "image_classification", "transformer"),
    "AlexNet": Known(VISION, "image_classification", "cnn"),
}
_PREFIXES = ("Flax", "TF")


def know_class(report: Report, name: str) -> None:
    """Note what a class is for, if it is a known one."""
    known = by_class(name)
    if known is not None:
        report.know(
            Confidence.inferred, f"the class {name}", family=known.family, task=known.task,
            architecture=known.architecture,
        )  # fmt: skip


def by_class(name: str) -> Known | None:
    """Family, task and architecture of a class of transformers, diffusers or torchvision; None for unknown ones."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name in OWN:
        return OWN[name]
    if name.endswith("Pipeline"):
        return by_pipeline(name)
    if name.startswith(DIFFUSION) and not name.startswith("UNetFor"):
        told = "Condition" in name or name.startswith(("ControlNet", "StableDiffusion", "Flux"))
        return Known(VISION, "text_to_image" if told else "unconditional_image_generation", "diffusion")
    architecture = "cnn" if name.startswith(CONVOLUTIONS) else "transformer"
    ending = max((row for row in SUFFIXES if name.endswith(row[0])), key=lambda row: len(row[0]), default=None)
    if ending is not None:
        family, task = ending[1], ending[2]
        if task == "text2text_generation" and name.startswith(SPOKEN):
            family, task = AUDIO, "speech_recognition"
        elif task in {"text2text_generation", "text_generation"} and name.startswith(SEEN):
            family, task = VISION, "image_to_text"
        elif name.startswith(SOUNDS) and task == "text_classification":
            family, task = AUDIO, "audio_classification"
        elif name.startswith(("Mamba", "Rwkv", "xLSTM")):
            architecture = "ssm"
        return Known(family, task, architecture)
    if name.endswith("Model"):
        if name.startswith(SOUNDS):
            return Known(AUDIO, "embedding", "transformer")
        if name.startswith(("CLIPModel", "Siglip")):
            return Known(VISION, "zero_shot_image_classification", "transformer")
        return Known(VISION if name.startswith(PICTURES) else NLP, "embedding", architecture)
    if name.startswith(CONVOLUTIONS):
        return Known(VISION, "image_classification", "cnn")
    return None


def by_pipeline(name: str) -> Known:
    """What a pipeline of diffusers makes."""
    task = "text_to_image"
    if "Inpaint" in name:
        task = "inpainting"
    elif "Img2Img" in name:
        task = "image_to_image"
    elif "Upscale" in name:
        task = "super_resolution"
    elif name.startswith(("DDPM", "DDIM", "Karras", "Score", "PNDM", "LDMPipeline", "Consistency")):
        task = "unconditional_image_generation"
    elif "Video" in name or name.startswith(("AnimateDiff", "CogVideo", "LTX", "Wan")):
        task = "text_to_video"
    elif name.startswith("Audio") or "Audio" in name:
        return Known(AUDIO, "text_to_audio", "diffusion")
    return Known(VISION, task, "diffusion")


def by_layers(classes: Iterable[str]) -> str | None:
    """Architecture by the layers' classes of torch or Keras."""
    kinds = Counter(classes)
    if any("Attention" in kind or kind.startswith("Transformer") for kind in kinds):
        return "transformer"
    if any(kind in kinds for kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell")):
        return "rnn"
    if any(kind.startswith("Conv") for kind in kinds):
        return "cnn"
    linear = kinds["Linear"] + kinds["Dense"]
    if linear:
        return "linear" if linear == 1 else "neural_network"
    return None
