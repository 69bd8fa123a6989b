"""The models of the zoo: how each is made, small and without downloads, and what it is called with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One model: `make()` gives it and its example inputs."""

    library: str
    name: str
    make: Callable[[], tuple[nn.Module, Any]]


DETECTION = ("rcnn", "retinanet", "ssd", "fcos")
TORCHVISION_SIZES = {"inception_v3": 299, "alexnet": 96, "squeezenet": 96, "vit_": 224, "maxvit": 224, "vgg": 64}
TORCHVISION_SAMPLE = ("resnet18", "mobilenet_v3_small", "googlenet", "ssdlite320_mobilenet_v3_large")
TIMM_SAMPLE = ("convnext", "efficientnet", "swin_transformer", "vision_transformer", "levit")
TIMM_SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "tiny",
    "mini",
    "xxs",
    "_xs",
    "small",
    "_s0",
    "_t0",
    "_0",
    "18",
    "26",
    "14",
)
TIMM_LARGEST = 256
TRANSFORMERS_SAMPLE = ("bert", "gpt2", "vit", "wav2vec2")


def torchvision_entries() -> Iterator[Entry]:
    """All models of torchvision."""
    import torchvision

    for name in torchvision.models.list_models():
        yield Entry("torchvision", name, lambda name=name: _torchvision(name))  # type: ignore[misc]


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if any(part in name for part in (*DETECTION, "deeplab", "fcn_", "lraspp")):
        options["weights_backbone"] = None
    if any(part in name for part in ("rcnn", "retinanet", "fcos")):
        options |= {"min_size": 96, "max_size": 128}
    if "rcnn" in name:
        options["box_detections_per_img"] = 4
    if "googlenet" in name or "inception_v3" in name:
        options["init_weights"] = True
    if name.startswith("quantized_"):
        options["quantize"] = False  # the float model, made of what torch.ao would quantize
    return torchvision.models.get_model(name, **options), _torchvision_inputs(name)


def _torchvision_inputs(name: str) -> Any:
    if "raft" in name:
        return (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    if any(part in name for part in DETECTION):
        return ([torch.rand(3, 96, 96), torch.rand(3, 96, 80)], [_objects(), _objects()])
    if "mvit" in name:
        return (torch.rand(1, 3, 16, 224, 224),)
    if name == "s3d":
        return (torch.rand(1, 3, 16, 224, 224),)
    if any(part in name for part in ("r3d", "mc3", "r2plus1d", "swin3d")):
        return (torch.rand(2, 3, 8, 64, 64),)
    size = next((size for part, size in TORCHVISION_SIZES.items() if part in name), 64)
    return (torch.rand(1 if name == "vit_h_14" else 2, 3, size, size),)


def _objects() -> dict[str, torch.Tensor]:
    points = torch.cat([torch.rand(2, 17, 2) * 50 + 5, torch.ones(2, 17, 1)], -1)
    return {
        "boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0], [10.0, 20.0, 60.0, 60.0]]), "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, 96, 96, dtype=torch.uint8), "keypoints": points,
    }  # fmt: skip


def timm_entries() -> Iterator[Entry]:
    """The smallest model of every family of timm."""
    import timm

    for family in timm.models.list_modules():
        yield Entry("timm", family, lambda family=family: _timm(family))  # type: ignore[misc]


def _timm(family: str) -> tuple[nn.Module, Any]:
    import timm

    names = timm.list_models(module=family)
    if not names:
        raise LookupError(f"timm has no model in '{family}'")
    small = [n for n in names if any(mark in n for mark in TIMM_SMALL)] or names
    name = min(small[:: max(1, len(small) // 4)], key=_timm_size)
    model = timm.create_model(name)
    channels, *size = model.default_cfg["input_size"]
    if max(size) <= TIMM_LARGEST or model.default_cfg.get("fixed_input_size"):
        return model, (torch.rand(2, channels, *size),)
    for edge in (TIMM_LARGEST, 224):
        smaller = (torch.rand(2, channels, edge, edge),)
        for options in ({"img_size": edge}, {}):  # some fix their size when they are made
            with contextlib.suppress(Exception), torch.no_grad():
                made = timm.create_model(name, **options).eval()
                made(*smaller)
                return made.train(), smaller
    return model, (torch.rand(2, channels, *size),)


def _timm_size(name: str) -> int:
    import timm

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:
        return 1 << 62


def transformers_entries() -> Iterator[Entry]:
    """Small models of many architectures of transformers, from configurations."""
    for name in (*ENCODERS, *DECODERS, *PAIRS, *VISION, *AUDIO):
        yield Entry("transformers", name, lambda name=name: _transformers(name))  # type: ignore[misc]


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 128,
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "dim": 64, "n_layers": 2, "n_heads": 4,
    "hidden_dim": 128,
    "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "embedding_size": 64, "num_key_value_heads": 2, "head_dim": 16, "word_embed_proj_dim": 64, "ffn_dim": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
    "image_size": 32, "patch_size": 8, "num_labels": 4,
}  # fmt: skip
ENCODERS = ("bert", "distilbert", "roberta", "albert", "electra", "mobilebert", "deberta-v2", "xlm-roberta", "mpnet",
            "camembert", "layoutlm", "convbert", "squeezebert")  # fmt: skip
DECODERS = ("gpt2", "opt", "llama", "mistral", "gpt_neox", "phi", "qwen2", "gemma", "bloom")
PAIRS = ("t5", "bart", "marian", "pegasus")
VISION = ("vit", "deit", "beit", "swin", "convnext", "segformer", "resnet", "mobilevit", "dinov2", "regnet")
AUDIO = ("wav2vec2", "hubert", "audio-spectrogram-transformer", "wavlm")


def _transformers(name: str) -> tuple[nn.Module, Any]:
    import transformers

    defaults = transformers.AutoConfig.for_model(name).to_dict()
    small = {} if name in ("resnet", "regnet", "convnext", "mobilevit", "segformer", "swin") else SMALL
    known = {k: v for k, v in small.items() if k in defaults or k in ("num_labels", "head_dim")}
    extra = {"image_size": 64} if name == "mobilevit" else {}
    if name == "mobilebert":
        known |= {"hidden_size": 64, "intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 32}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **known, **extra))
    return model, _transformers_inputs(name, model)


def _transformers_inputs(name: str, model: nn.Module) -> dict[str, torch.Tensor]:
    if name == "audio-spectrogram-transformer":
        return {"input_values": torch.rand(1, model.config.max_length, model.config.num_mel_bins)}
    if name in AUDIO:
        return {"input_values": torch.rand(2, 4000)}
    if name == "swin":
        return {"pixel_values": torch.rand(2, 3, 224, 224)}
    if name in VISION:
        size = getattr(model.config, "image_size", 64) or 64
        size = size if isinstance(size, int) else size[0]
        return {
            "pixel_values": torch.rand(
                2, 3, min(size, 64) if name != "dinov2" else size, min(size, 64) if name != "dinov2" else size
            )
        }
    ids = torch.randint(3, 100, (2, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :6]} if name in PAIRS else {})


def hard_entries() -> Iterator[Entry]:
    """Hand-written models, each with something that plain symbolic tracing fails on or bakes in."""
    from zoo_parts import hard_cases

    for name, make in hard_cases.CASES.items():
        yield Entry("hard cases", name, lambda make=make: copy.deepcopy(make()))  # type: ignore[misc]
