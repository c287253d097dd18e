"""Settings of a model of transformers in a packed file, and what bounds them.

The settings go to code that is not ours, which may loop or allocate as often as one of them says. So each number is
compared with the bytes of tensors that the file really has, and building the model ends when it has made more tensors
than the file can hold (and when it has computed for too long: little_time.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from stompp_kernels.conversion.files.kinds import shown
from stompp_kernels.ops.checks import check_choice

ATTENTIONS = ("eager", "sdpa")  # others are kernels that may be fetched from the hub
# What transformers notes beside the architecture.
_NOTES = ("architectures", "transformers_version", "task_specific_params", "torch_dtype", "dtype")
# Keys of a config that name code, another model or a file to fetch.
_REACHING_OUT = re.compile(
    r"^_|auto_map|name_or_path|quantization|compression|pretrained|backbone|timm|custom|implementation|use_kernels"
)
_COUNT = re.compile(r"num|^n_|layer|depth")
_LABELS = re.compile(r"num_.*labels|num_.*classes")
_KEY = re.compile(r"[A-Za-z0-9 _./:+-]{1,256}")
# Bounds of labels, and of token lists that are keys too.
_MOST_CHARACTERS, _DEEPEST = 4096, 16
_COMMON_SIZE = 1 << 20  # of positions, say, which rotary embeddings need no tensor for
_COMMON_COUNT = 1 << 10  # of codes or samples, say, which need no tensor either; those of modules end by FewTensors
_MOST_LABELS = 1 << 16  # transformers makes two dicts of them
MADE_PER_TENSOR = 16  # tensors made while a model is built; those of transformers make 2 to 5

# Settings of generate() that are numbers, texts and lists of them. The others hold objects or name code.
GENERATION = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "max_time", "stop_strings"),
    *("do_sample", "num_beams", "use_cache", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "bad_words_ids", "renormalize_logits", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    *("guidance_scale", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "return_dict_in_generate", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("encoder_no_repeat_ngram_size", "decoder_start_token_id", "num_beam_groups", "diversity_penalty"),
    *("penalty_alpha", "low_memory", "token_healing", "prefill_chunk_size", "sequence_bias"),
)


def config_to_json(config: Any) -> dict[str, Any]:
    """All settings of a config, without notes, private keys and where its model came from."""
    settings = _without_notes(json.loads(config.to_json_string(use_diff=False)))
    attention = getattr(config, "_attn_implementation", None)
    return {**settings, "attn_implementation": attention} if attention in ATTENTIONS else settings


def generation_to_json(generation: Any) -> dict[str, Any]:
    """The settings of a GenerationConfig that are given.

    Raises:
        ValueError: one is given that no file can hold.
    """
    settings = {
        key: value
        for key, value in json.loads(generation.to_json_string(use_diff=False)).items()
        if value is not None and not key.startswith("_") and key != "transformers_version"
    }
    if others := sorted(settings.keys() - set(GENERATION)):
        raise ValueError(
            f"generation_config cannot be saved in a packed network with {', '.join(others)}; set them to None first"
        )
    return settings


def generation_from_json(settings: Mapping[str, Any]) -> Any:
    """The GenerationConfig of settings that were checked."""
    from transformers import GenerationConfig

    return GenerationConfig(**settings)


def check_settings(settings: Any, generation: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where settings reach for something outside, or for a network larger than the file's tensors."""
    # A tensor without elements has no bytes, whatever its shape.
    sizes = [size for t in tensors.values() if t.numel() for size in t.shape]
    count = max([len(tensors), *sizes])
    limits = {"layers": len(tensors), "labels": min(count, _MOST_LABELS), "count": max(count, _COMMON_COUNT)}
    limits["any"] = max(_COMMON_SIZE, sum(t.numel() * t.element_size() for t in tensors.values()))
    for key, value in _entries(settings):
        if key == "attn_implementation":
            check_choice(key, value, ATTENTIONS)
        elif _REACHING_OUT.search(key) or (key == "model_type" and "timm" in str(value)):
            raise ValueError(f"a config with {shown(key)} cannot be loaded: it may lead to another model, file or code")
        elif type(value) in (int, float):
            kind = "labels" if _LABELS.search(key) else "layers" if "layers" in key else "any"
            kind = "count" if kind == "any" and _COUNT.search(key) else kind
            _check_number(key, value, limits[kind], len(tensors))
    if generation is not None:
        if type(generation) is not dict or not generation.keys() <= set(GENERATION):
            raise ValueError(f"generation must have known settings of generate(), got {shown(generation)}")
        for key, value in _entries(generation):
            if type(value) is int:
                _check_number(key, value, 1 << 31, len(tensors))


def _check_number(key: str, value: float, limit: int, tensors: int) -> None:
    if type(value) is int and not -(1 << 31) <= value <= limit:
        raise ValueError(f"{key} must be at most {limit} in a file of {tensors} tensors, got {shown(value)}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{key} must be finite, got {value}")


def _entries(value: Any, key: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    """(key, value) of everything in settings; what lies in a list has the list's key.

    Raises:
        ValueError: a key or text is no such thing as settings have.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{shown(key)} lies in more than {_DEEPEST} lists and objects")
    if type(value) is str and (len(value) > _MOST_CHARACTERS or not value.replace("\n", "").isprintable()):
        raise ValueError(f"{shown(key)} must be a text of at most {_MOST_CHARACTERS} characters, got {shown(value)}")
    if type(value) is dict:
        for inner_key, inner in value.items():
            if len(inner_key) > _MOST_CHARACTERS or not inner_key.isprintable():
                raise ValueError(f"{shown(inner_key)} is no key of settings")
            yield inner_key, inner
            yield from _entries(inner, inner_key, depth + 1)
    elif type(value) is list:
        for inner in value:
            yield key, inner
            yield from _entries(inner, key, depth + 1)


def _without_notes(value: Any) -> Any:
    """A config, those inside it too, without notes, private keys and where its model came from."""
    if isinstance(value, dict):
        kept = {key: v for key, v in value.items() if not key.startswith("_") and key not in _NOTES}
        return {key: _without_notes(v) for key, v in kept.items()}
    return [_without_notes(v) for v in value] if isinstance(value, list) else value


class FewTensors(TorchFunctionMode):
    """Ends what makes tensors too often: the time of building a model is bounded by the file's size."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Not in calls without a result: no_grad ends with one, which must not fail.
        if isinstance(result, Tensor):
            self.left -= 1
            if self.left < 0:
                raise ValueError("it has more parameters than the file has tensors")
        return result
