"""Fine-tune a transformer into a binary one with transformers.Trainer, resume-safe, and pack it.

    pip install "stompp_kernels[transformers]"
    python examples/transformers_finetuning.py

A small BERT with random weights learns made sentences, so that the example needs no network. For your own task put
`AutoModelForSequenceClassification.from_pretrained(...)` and your tokenized data in their place; nothing else changes.
"""

import argparse

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import stompp_kernels as sk
from stompp_kernels.training.callbacks.hf_trainer import StoMPPTrainerCallback


def sentences(count, length=16):
    """Returns sentences of ids in 0 to 99, as the Trainer takes them; the label tells whether most are above 49."""
    ids = torch.randint(100, (count, length))
    labels = ((ids > 49).sum(1) > length // 2).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def main(arguments=None):
    """Run the example; ``arguments`` are the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", default="finetuned", help="Folder of checkpoints and of the packed network.")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    # A LayerNorm, not a BatchNorm, follows each layer, so scales keep the function that was learned before.
    inputs = {"input_ids": torch.stack([sentence["input_ids"] for sentence in sentences(8)])}
    model, report = sk.prepare(BertForSequenceClassification(config), inputs, scale="channel", input_scale="tensor")
    print(report)

    settings = TrainingArguments(
        options.output,
        max_steps=options.steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        save_steps=max(options.steps // 2, 1),
        logging_steps=max(options.steps // 10, 1),
        report_to="none",
        use_cpu=True,
    )
    callback = StoMPPTrainerCallback(regime="ste", surrogate="clip", refresh=5)
    trainer = Trainer(model, settings, train_dataset=sentences(4096), callbacks=[callback])
    trainer.train()  # after a crash: trainer.train(resume_from_checkpoint=True)
    print(callback.progression.progress())

    test = sentences(256)
    inputs = {"input_ids": torch.stack([sentence["input_ids"] for sentence in test])}
    labels = torch.stack([sentence["labels"] for sentence in test])
    packed = sk.convert(trainer.model, verify=inputs)
    sk.save_packed(packed, f"{options.output}/packed.safetensors")
    loaded = sk.load_packed(f"{options.output}/packed.safetensors")
    with torch.no_grad():
        right = (loaded(**inputs).logits.argmax(1) == labels).float().mean().item()
    print(f"{right:.1%} of new sentences right")


if __name__ == "__main__":
    main()
