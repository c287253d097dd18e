"""Train a binary network on handwritten digits, convert it, save it and run the saved file.

    python examples/quickstart.py --epochs 30 --output digits.safetensors

The images come with scikit-learn. With 30 epochs this takes about a minute on two cores.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import stompp_kernels as sk


def load_data():
    """Returns images [1797, 1, 8, 8] with mean 0 and variance 1, and their digits [1797]."""
    images, digits = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return (images - images.mean()) / images.std(), torch.tensor(digits)


def train(model, images, labels, epochs, batch=64):
    """Train the model in place until every binarized layer is committed."""
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # Masks take about `refresh` steps to follow: short against the steps that a layer has for its turn.
    progression = sk.StoMPP(model, steps, regime="ste", surrogate="clip", refresh=10, cooldown=0.25)
    for epoch in range(epochs):
        for picked in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            optimizer.zero_grad()
            loss = cross_entropy(model(images[picked]), labels[picked])
            loss.backward()
            optimizer.step()
            schedule.step()
            progression.step()  # after optimizer.step(), like a learning-rate schedule
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {progression.frozen_fraction():.0%} of the masks frozen")


def accuracy(model, images, labels):
    """Returns the fraction of images whose largest logit is the right one."""
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def main(arguments=None):
    """Run the example; ``arguments`` are the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", default="digits.safetensors", help="Where the packed network goes.")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    images, labels = load_data()
    test, training = slice(0, 360), slice(360, None)
    model, report = sk.prepare(sk.models.SmallResNet(in_channels=1, image_size=8), images[:8])
    print(report)
    train(model, images[training], labels[training], options.epochs)

    packed = sk.convert(model, verify=images[:8])  # raises an error if a sign differs from the float simulation's
    size = sk.save_packed(packed, options.output)
    loaded = sk.load_packed(options.output)
    assert torch.equal(loaded(images[test]), packed(images[test]))
    print(
        f"{options.output}: {size:,} bytes, {accuracy(loaded, images[test], labels[test]):.1%} of the test images right"
    )


if __name__ == "__main__":
    main()
