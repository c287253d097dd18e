"""BERT-type encoders of Hugging Face transformers with a classifier on top (Devlin et al., NAACL 2019)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes
from stompp_kernels.models.hub import from_hub
from stompp_kernels.models.registry import register
from stompp_kernels.nn.file_classes import register_file_class
from stompp_kernels.ops.checks import check_choice

POOLINGS = (None, "pooler", "mean")


def tokens(max_length: int = 128, config: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Makes one sequence of random tokens without padding, the same each time: int64 [1, max_length] each.

    Args:
        max_length: tokens of the sequence.
        config: settings of the encoder, of which ``vocab_size`` bounds the ids; None: 1000.
    """
    check_sizes(max_length=max_length)
    vocabulary = (config or {}).get("vocab_size", 1000)  # no pretrained model's is smaller
    ids = torch.randint(vocabulary, (1, max_length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class EncoderClassifier(nn.Module):
    """An encoder of ``transformers.AutoModel``, pooling, dropout, one linear layer.

    ``sk.models.create("bert", binarize="both", ...)`` binarizes all Linear layers of the encoder; embeddings, norms,
    pooler and classifier stay in float. Weights and inputs have scales, the means of their magnitudes (of the inputs,
    over ``example``), so that signs stand for values of the size that they replace. What is larger is clipped to it
    from the start: let the model adapt before the first window (``warmup`` of StoMPP). While its masks advance, it
    takes sequences padded to ``max_length``.

    Args:
        pretrained: a folder that ``save_pretrained`` wrote, or a model's name on the hub.
        config: settings of an encoder with random weights instead, ``model_type`` among them.
        max_length: tokens of a sequence; at most as many as the encoder has positions.
        pooling: "pooler", the encoder's own, or "mean" of the tokens that attention_mask has; None: its own if it has
            one.

    Shape:
        input_ids and attention_mask (1: token, 0: padding), and token_type_ids where the encoder has them, int64 [B, L]
        each, to [B, num_classes].

    Raises:
        ImportError: transformers is missing.
        FileNotFoundError: ``pretrained`` is the path of no folder.
        ValueError: an argument is not allowed for this encoder, or ``pretrained`` cannot be loaded.

    Example:
        >>> config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        ...           "intermediate_size": 64, "vocab_size": 100}
        >>> model = sk.models.EncoderClassifier(2, config=config, max_length=16).eval()
        >>> ids = torch.randint(100, (4, 16))
        >>> model(input_ids=ids, attention_mask=torch.ones_like(ids)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        num_classes: int = 2,
        pretrained: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        max_length: int = 128,
        pooling: str | None = None,
    ) -> None:
        check_choice("pooling", pooling, POOLINGS)
        super().__init__()
        self.encoder = _encoder(pretrained, config)
        own = getattr(self.encoder, "pooler", None) is not None
        if pooling == "pooler" and not own:
            raise ValueError(f"pooling must be 'mean' for {type(self.encoder).__name__}, which has no pooler")
        self.pooling = pooling or ("pooler" if own else "mean")
        if own and self.pooling == "mean":
            self.encoder.pooler = None
        settings = self.encoder.config
        positions = getattr(settings, "max_position_embeddings", max_length)
        if not 0 < max_length <= positions:
            raise ValueError(f"max_length must be in [1, {positions}], got {max_length}")
        self.max_length = max_length
        self.dropout = nn.Dropout(getattr(settings, "hidden_dropout_prob", 0.1))
        self.classifier = nn.Linear(settings.hidden_size, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns logits [B, num_classes]; the arguments are those of the class's *Shape*."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types)
        if self.pooling == "pooler":
            pooled = output.pooler_output
        else:
            weights = attention_mask[..., None].to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
        return self.classifier(self.dropout(pooled))


def _encoder(pretrained: str | os.PathLike[str] | None, config: Mapping[str, Any] | None) -> nn.Module:
    """Makes the float32 encoder, in training mode."""
    if (pretrained is None) == (config is None):
        raise ValueError(f"one of pretrained and config must be given, got {pretrained!r} and {config!r}")
    try:
        import transformers
    except ImportError as error:
        raise ImportError('BERT needs transformers: pip install "stompp_kernels[transformers]"') from error
    if config is not None:
        if "model_type" not in config:
            raise ValueError(f"config must have a model_type, such as 'bert', got {dict(config)}")
        encoder = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    else:
        assert pretrained is not None
        path = Path(pretrained)
        if (path.is_absolute() or str(pretrained).startswith(".")) and not path.is_dir():
            raise FileNotFoundError(
                f"pretrained must be a folder with config.json and model.safetensors, there is none at {path}"
            )
        encoder = from_hub(transformers.AutoModel, pretrained, "pretrained")
    # A checkpoint may be in half precision, in which optimizers lose small steps.
    return encoder.float().train()


register_file_class(
    EncoderClassifier,
    config_of=lambda model: model.encoder.config,
    arguments={
        "num_classes": lambda model: model.classifier.out_features,
        "max_length": lambda model: model.max_length,
        "pooling": lambda model: model.pooling,
    },
)

register(
    "bert",
    EncoderClassifier,
    "BERT-type encoder of Hugging Face transformers: pretrained=FOLDER_OR_NAME, or config={...} for random weights",
    example=tokens,
    prepare_options={
        "keep_first": False,
        "keep_last": False,
        "keep": (r"(^|[._])(embedding|pooler|classifier)",),
        # A committed layer then gives out values of the size that the layers behind it are used to.
        "scale": "channel",
        "latent_std": None,
        "input_scale": "tensor",
    },
)
