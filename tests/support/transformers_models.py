"""Detectors of transformers of a few thousand random weights, one of each family, and a batch for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SET = {
    "num_labels": 3,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 6,
    "auxiliary_loss": True,
    "dropout": 0.0,
}
HYBRID = {
    "num_labels": 3,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8] * 3,
    "encoder_layers": 1,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 6,
    "decoder_in_channels": [16] * 3,
    "decoder_ffn_dim": 16,
    "num_feature_levels": 3,
    "decoder_n_points": 2,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 4,
}
GROUPS = {
    "num_labels": 3,
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "num_queries": 6,
    "decoder_n_points": 2,
    "projector_scale_factors": [1.0],
}
SIZES = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 1,
    "image_size": 64,
    "patch_size": 16,
    "out_features": ["stage1", "stage2"],
}
LEVELS = ["stage2", "stage3", "stage4"]


def _resnet(*stages: str) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(num_channels=3, **SIZES, out_features=list(stages))


def _model(name: str, features: Any = None, **options: Any) -> torch.nn.Module:
    import transformers

    given = {} if features is None else {"backbone_config": features}
    config = getattr(transformers, f"{name}Config")(**options, **given)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def _of_set(name: str, **options: Any) -> torch.nn.Module:
    return _model(name, _resnet("stage4"), use_timm_backbone=False, backbone=None, **SET | {"d_model": 16} | options)


def _deformable(**options: Any) -> torch.nn.Module:
    backbone = {"use_timm_backbone": False, "backbone": None, "num_feature_levels": 3}
    return _model("DeformableDetr", _resnet(*LEVELS), **SET | {"d_model": 32} | backbone | options)


def _rt_detr(name: str) -> torch.nn.Module:
    from transformers import RTDetrResNetConfig

    return _model(name, RTDetrResNetConfig(**SIZES, layer_type="basic", out_features=LEVELS), **HYBRID)


def _d_fine(name: str, **options: Any) -> torch.nn.Module:
    from transformers import HGNetV2Config

    stages = {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4, "stage_kernel_size": [3] * 4}
    stages |= {f"stage_{x}_channels": [8] * 4 for x in ("in", "mid", "out")} | {"stem_channels": [3, 8, 8]}
    stages |= {"stage_downsample": [False, True, True, True], "stage_light_block": [False] * 4}
    return _model(name, HGNetV2Config(**SIZES, **stages, out_features=LEVELS), **HYBRID, **options)


def _groups(name: str, vit: str, groups: int = 3, **options: Any) -> torch.nn.Module:
    import transformers

    return _model(name, getattr(transformers, vit)(**VIT, **options), **GROUPS, group_detr=groups)


def _grounded(name: str) -> torch.nn.Module:
    from transformers import BertConfig, SwinConfig

    image = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2, "image_size": 64}
    text = {"vocab_size": 2000, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = SET | {"d_model": 32, "max_text_len": 12, "use_timm_backbone": False, "backbone": None}
    words = BertConfig(**text, intermediate_size=16, max_position_embeddings=64)
    return _model(name, SwinConfig(**image, patch_size=4, out_features=LEVELS), text_config=words, **options)


def _yolos() -> torch.nn.Module:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return _model("Yolos", num_labels=3, image_size=[64, 64], patch_size=16, num_detection_tokens=6, **size)


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "Detr": lambda: _of_set("Detr"),
    "Detr, other numbers": lambda: _of_set("Detr", eos_coefficient=0.3, class_cost=2, bbox_loss_coefficient=3),
    "Detr, final layer alone": lambda: _of_set("Detr", auxiliary_loss=False),
    "ConditionalDetr": lambda: _of_set("ConditionalDetr"),
    "DabDetr": lambda: _model(
        "DabDetr", _resnet("stage4"), use_timm_backbone=False, backbone=None, **SET, hidden_size=16
    ),
    "TableTransformer": lambda: _of_set("TableTransformer"),
    "Yolos": _yolos,
    "DeformableDetr": _deformable,
    "DeformableDetr, refined": lambda: _deformable(with_box_refine=True, focal_alpha=0.5),
    "DeformableDetr, two stages": lambda: _deformable(with_box_refine=True, two_stage=True, two_stage_num_proposals=6),
    "RTDetr": lambda: _rt_detr("RTDetr"),
    "RTDetrV2": lambda: _rt_detr("RTDetrV2"),
    "DFine": lambda: _d_fine("DFine"),
    "Deimv2": lambda: _d_fine("Deimv2"),
    "Deimv2, each layer its own pairs": lambda: _d_fine("Deimv2", use_dense_one_to_one=False),
    "GroundingDino": lambda: _grounded("GroundingDino"),
    "MMGroundingDino": lambda: _grounded("MMGroundingDino"),
    "LwDetr": lambda: _groups("LwDetr", "LwDetrViTConfig", num_windows=4),
    "LwDetr, one group": lambda: _groups("LwDetr", "LwDetrViTConfig", groups=1, num_windows=4),
    "RfDetr": lambda: _groups("RfDetr", "RfDetrDinov2Config", num_windows=2),
}


def model_of(name: str) -> Any:
    """Return a model in training mode, the same at each call."""
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch(name: str, counts: tuple[int, ...] = (2, 1)) -> dict[str, Any]:
    """Return two images and their labels, and three words for a model of words, as the model of a name takes them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(counts), 3, 64, 64, generator=generator)
    inputs = {"pixel_values": images, "labels": [_labels(n, generator) for n in counts]}
    if "Grounding" not in name:
        return inputs
    tokens = torch.tensor([[101, 7, 1012, 8, 9, 1012, 10, 1012, 102]]).expand(len(counts), -1)
    masks = {"attention_mask": torch.ones_like(tokens), "token_type_ids": torch.zeros_like(tokens)}
    return inputs | {"input_ids": tokens} | masks


def _labels(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    center, size = (torch.rand(count, 2, generator=generator) for _ in range(2))
    boxes = torch.cat((0.3 + 0.4 * center, 0.1 + 0.3 * size), dim=1)
    return {"class_labels": torch.randint(3, (count,), generator=generator), "boxes": boxes}
