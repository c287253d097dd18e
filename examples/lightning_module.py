"""Train a binary network in Lightning, and pack what it leaves.

    pip install "stompp_kernels[lightning]"
    python examples/lightning_module.py

The images are scikit-learn's digits.
"""

import argparse

import lightning.pytorch as pl
import torch
from quickstart import accuracy, load_data
from torch.utils.data import DataLoader, TensorDataset

import stompp_kernels as sk
from stompp_kernels.training.callbacks.lightning import StoMPPCallback


class Classifier(pl.LightningModule):
    """A LightningModule like any other: nothing in it knows of binary layers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        """Return the loss of a batch."""
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        """Return the optimizer; the model is prepared by now, so it gets the parameters that train."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(arguments=None):
    """Run the example; ``arguments`` are the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="lightning_digits.safetensors", help="Where the packed network goes.")
    options = parser.parse_args(arguments)
    pl.seed_everything(0)

    images, labels = load_data()
    model, report = sk.prepare(sk.models.SmallResNet(in_channels=1, image_size=8), images[:8])
    print(report)

    module = Classifier(model)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[StoMPPCallback(module="model", regime="ste", surrogate="clip", refresh=10)],
    )
    trainer.fit(module, DataLoader(TensorDataset(images[360:], labels[360:]), 64, shuffle=True))

    packed = sk.convert(module.model, verify=images[:8])
    sk.save_packed(packed, options.output)
    right = accuracy(sk.load_packed(options.output), images[:360], labels[:360])
    print(f"{right:.1%} of the test images right")


if __name__ == "__main__":
    main()
