"""Networks of Hugging Face transformers: tiny configurations, random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from corpus import by_torchvision
from corpus.network import Network, images, tokens

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_ENCODER = {**_SIZES, "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
_VISION = {**_SIZES, "image_size": 32, "patch_size": 8, "num_channels": 3}
# Weights keep their size: no BatchNorm follows.
_OPTIONS = {"scale": "channel", "input_scale": "tensor"}
_T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
_BART = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_WAV2VEC2 = {
    **_SIZES,
    "vocab_size": 20,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}
_WHISPER = {
    **_BART,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 20,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_CLIP_TEXT = {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2}


def _text() -> dict[str, Any]:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _decoder() -> dict[str, Any]:
    return {"input_ids": tokens(), "use_cache": False}


def _sequences() -> dict[str, Any]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens(length=6), "use_cache": False}


def _pixels(size: int = 32) -> dict[str, Any]:
    return {"pixel_values": images(size)}


def _sound(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# name -> class, config class, settings, inputs
MODELS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", _ENCODER, _text),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 40},
        _text,
    ),
    "RoBERTa": ("RobertaForTokenClassification", "RobertaConfig", _ENCODER, _text),
    "ALBERT": ("AlbertForSequenceClassification", "AlbertConfig", {**_ENCODER, "embedding_size": 16}, _text),
    "ELECTRA": ("ElectraForSequenceClassification", "ElectraConfig", {**_ENCODER, "embedding_size": 16}, _text),
    "DeBERTa v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", _ENCODER, _text),
    "Longformer": (
        "LongformerForSequenceClassification",
        "LongformerConfig",
        {**_ENCODER, "attention_window": 4, "bos_token_id": 1, "eos_token_id": 2},
        _text,
    ),
    "MobileBERT": (
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        {**_ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16},
        _text,
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 60,
            "n_positions": 40,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        _decoder,
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2}, _decoder),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_ENCODER, "ffn_dim": 48, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2},
        _decoder,
    ),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER, _decoder),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _DECODER, _decoder),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER, _decoder),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "head_dim": 16}, _decoder),
    "Phi": ("PhiForCausalLM", "PhiConfig", _DECODER, _decoder),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {**_DECODER, "state_size": 4}, _decoder),
    "T5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "decoder_start_token_id": 0}, _sequences),
    "BART": ("BartForConditionalGeneration", "BartConfig", _BART, _sequences),
    "ViT": ("ViTForImageClassification", "ViTConfig", _VISION, _pixels),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", _VISION, _pixels),
    "BEiT": ("BeitForImageClassification", "BeitConfig", _VISION, _pixels),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", _VISION, _pixels),
    "Swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        _pixels,
    ),
    "ResNet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]},
        _pixels,
    ),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        _pixels,
    ),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
        lambda: _pixels(64),
    ),
    "MobileNetV2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}, _pixels),
    "MobileViT": (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48],
            "num_attention_heads": 2,
        },
        lambda: _pixels(64),
    ),
    "CLIP": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": _CLIP_TEXT, "vision_config": _VISION, "projection_dim": 16},
        lambda: {**_text(), **_pixels()},
    ),
    "Wav2Vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _WAV2VEC2, lambda: {"input_values": _sound(2, 1000)}),
    "HuBERT": (
        "HubertForSequenceClassification",
        "HubertConfig",
        _WAV2VEC2,
        lambda: {"input_values": _sound(2, 1000)},
    ),
    "Whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _WHISPER,
        lambda: {"input_features": _sound(2, 8, 32), "decoder_input_ids": tokens(length=6), "use_cache": False},
    ),
    "Audio Spectrogram Transformer": (
        "ASTForAudioClassification",
        "ASTConfig",
        {**_SIZES, "patch_size": 8, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        lambda: {"input_values": _sound(2, 32, 16)},
    ),
    "PatchTST": (
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "prediction_length": 4,
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 48,
        },
        lambda: {"past_values": _sound(2, 32, 3)},
    ),
}


def _make(model: str, config: str, settings: dict[str, Any], inputs: Any) -> tuple[nn.Module, Any]:
    if by_torchvision.available():
        by_torchvision.load()  # which transformers imports
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings)), inputs()


NETWORKS = [
    Network(
        f"transformers {name}",
        "transformers",
        lambda entry=entry: _make(*entry),
        _OPTIONS,
    )
    for name, entry in MODELS.items()
]
