"""Data sets: made files in every layout, what damage says, and batches that are functions of their arguments."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, generator
from PIL import Image

from stompp_kernels.training import data as data_sets
from stompp_kernels.training.data.augment import CropAndFlip
from stompp_kernels.training.data.base import limited, mixed_seed
from stompp_kernels.training.data.imagenet import random_box

FILES = {
    ("cifar10", "binary"): ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"),
    ("cifar10", "python"): ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
    ("cifar100", "binary"): ("cifar-100-binary", ["train.bin"], "test.bin"),
    ("cifar100", "python"): ("cifar-100-python", ["train"], "test"),
}
LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}
CLASSES = {"cifar10": 10, "cifar100": 100}


def made_images(n, classes, seed=0):
    """uint8 [n, 3072] and int64 [n]."""
    g = generator(seed)
    images = torch.randint(256, (n, 3072), generator=g).byte()
    return images.numpy(), torch.randint(classes, (n,), generator=g).numpy()


def binary_file(name, images, labels):
    coarse = [labels[:, None] % 20] if name == "cifar100" else []
    return np.concatenate([*coarse, labels[:, None], images], axis=1).astype(np.uint8).tobytes()


def python2_string(text):
    return b"T" + struct.pack("<i", len(text)) + text


def python2_array(images):
    """The opcodes that Python 2 with numpy 1 wrote for a uint8 array."""
    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", size) for size in images.shape) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2_string(images.tobytes()) + b"tb"


def python2_file(name, images, labels):
    ints = b"".join(b"J" + struct.pack("<i", label) for label in labels)
    key = python2_string(LABEL_KEYS[name].encode())
    return b"\x80\x02}(" + python2_string(b"data") + python2_array(images) + key + b"](" + ints + b"eu."


def python3_file(protocol, order="C"):
    def write(name, images, labels):
        batch = {"data": np.asarray(images, order=order), LABEL_KEYS[name]: labels.tolist(), "filenames": ["a.png"]}
        return pickle.dumps(batch, protocol=protocol)

    return write


WRITERS = {
    "binary": ("binary", binary_file),
    "python 2": ("python", python2_file),
    "python 3, protocol 2": ("python", python3_file(2)),
    "python 3, protocol 4": ("python", python3_file(4)),
    "python 3, by columns": ("python", python3_file(4, "F")),
}


def make_cifar(root, name="cifar10", writer="binary", n=40):
    """Writes a data set of n training and 20 test images; returns its folder and what it holds."""
    version, write = WRITERS[writer]
    folder, train, test = FILES[name, version]
    (root / folder).mkdir()
    content = [made_images(n // len(train), CLASSES[name], seed) for seed in range(len(train))]
    content.append(made_images(20, CLASSES[name], 99))
    for file, (images, labels) in zip([*train, test], content, strict=True):
        (root / folder / file).write_bytes(write(name, images, labels))
    return root / folder, content


def whole(batches):
    """All batches: inputs and labels, each one tensor."""
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_in_every_version(name, writer, tmp_path):
    folder, content = make_cifar(tmp_path, name, writer)
    images, labels = (np.concatenate(parts) for parts in zip(*content[:-1], strict=True))
    for path in (tmp_path, str(folder)):
        data = data_sets.load(name, path)
        assert (data.name, data.num_classes, data.train_size, data.test_size) == (name, CLASSES[name], 40, 20)
        assert np.array_equal(data.train_images.numpy().reshape(40, 3072), images)
        assert np.array_equal(data.train_labels.numpy(), labels)
        inputs, test_labels = whole(data.test_batches(7))
        assert inputs.dtype == torch.float32
        pixels = (inputs * data.std + data.mean).round().byte()
        assert np.array_equal(pixels.numpy().reshape(20, 3072), content[-1][0])
        assert np.array_equal(test_labels.numpy(), content[-1][1])


def test_the_made_python_2_file_is_what_pickle_takes_for_one():
    images, labels = made_images(3, 10)
    batch = pickle.loads(python2_file("cifar10", images, labels), encoding="latin1")
    assert np.array_equal(batch["data"], images)
    assert batch["labels"] == labels.tolist()


class Runs:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def calls(function, arguments=b")"):
    """A pickle that calls ``function`` (two lines: module and name) with a tuple of arguments."""
    return b"\x80\x02c" + function + arguments + b"R."


FORBIDDEN = {
    "eval": (calls(b"builtins\neval\n", python2_string(b"1/0") + b"\x85"), "builtins.eval"),
    "another of numpy's": (calls(b"numpy.core.multiarray\nscalar\n"), "numpy.core.multiarray.scalar"),
    "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro.x\x93.", "numpy.dtype.mro.x"),
    "in an allowed call": (calls(b"numpy\ndtype\n", b"cposix\nsystem\n\x85"), "posix.system"),
    "state of a name": (b"\x80\x02cnumpy\nndarray\n}" + python2_string(b"x") + b"K\x01sb.", "not a pickle"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "not a pickle"),
    "call only": (calls(b"numpy\ndtype\n"), "it must hold a dict"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(protocol, tmp_path):
    folder, _ = make_cifar(tmp_path, writer="python 2")
    ran = tmp_path / "ran"
    attack = pickle.dumps({"data": Runs(f"touch {ran}"), "labels": [0]}, protocol)
    pickle.loads(attack)
    assert ran.exists(), "the attack works on pickle itself"
    ran.unlink()
    (folder / "data_batch_3").write_bytes(attack)
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged.*system, which is not run.*cifar-10-batches-py"):
        data_sets.load("cifar10", tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("case", FORBIDDEN)
def test_other_names_and_odd_uses_of_allowed_ones_are_refused(case, tmp_path):
    content, message = FORBIDDEN[case]
    folder, _ = make_cifar(tmp_path, writer="python 2")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=f"test_batch is damaged.*{message}"):
        data_sets.load("cifar10", tmp_path)


def cut(content, name):
    return content[:-1]


def empty(content, name):
    return b""


def wrong_label(content, name):
    return binary_file(name, *(np.zeros((1, 3072)), np.array([CLASSES[name]])))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("damage", "message"), [(cut, "multiple of 307"), (empty, "got 0"), (wrong_label, r"labels must be in \[0, 10")]
)
def test_a_damaged_binary_file_is_named(name, damage, message, tmp_path):
    folder, _ = make_cifar(tmp_path, name)
    file = folder / FILES[name, "binary"][1][-1]
    file.write_bytes(damage(file.read_bytes(), name))
    with pytest.raises(ValueError, match=rf"{file.name} is damaged: .*{message}.*{folder.name}.*3072 bytes"):
        data_sets.load(name, tmp_path)


IMAGES, LABELS = made_images(4, 10)
DAMAGED_PICKLES = {
    "cut": (python2_file("cifar10", IMAGES, LABELS)[:-500], "not a pickle"),
    "not a pickle": (b"\x1f\x8b\x08\x00 gzip", "not a pickle"),
    "no labels": (pickle.dumps({"data": IMAGES}, 2), "dict with 'data' and 'labels'"),
    "labels are text": (pickle.dumps({"data": IMAGES, "labels": ["a"] * 4}, 2), "list of ints"),
    "label outside": (python2_file("cifar10", IMAGES, LABELS + 10), r"labels must be in \[0, 10\)"),
    "label of 100 bits": (pickle.dumps({"data": IMAGES, "labels": [1 << 100] * 4}, 2), r"labels must be in \[0, 10\)"),
    "fewer labels": (python2_file("cifar10", IMAGES, LABELS[:3]), "3 rows of 3072 bytes"),
    "narrow rows": (python2_file("cifar10", IMAGES[:, 1:], LABELS), "4 rows of 3072 bytes"),
    "floats": (pickle.dumps({"data": IMAGES.astype(np.float64), "labels": [0] * 4}, 2), "array of uint8"),
    "a list": (pickle.dumps({"data": [1, 2], "labels": [0] * 4}, 2), "numpy array"),
}


@pytest.mark.parametrize("case", DAMAGED_PICKLES)
def test_a_damaged_python_file_is_named(case, tmp_path):
    content, message = DAMAGED_PICKLES[case]
    folder, _ = make_cifar(tmp_path, writer="python 2")
    (folder / "data_batch_5").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_5 is damaged: .*{message}.*cifar-10-batches-py"):
        data_sets.load("cifar10", tmp_path)


def test_missing_files_and_folders_are_named_with_the_expected_layout(tmp_path):
    layout = r"expected cifar-10-batches-bin/\{data_batch_1.bin, .*cifar-10-batches-py"
    with pytest.raises(ValueError, match=f"path must be given for data set 'cifar10'.*{layout}"):
        data_sets.load("cifar10")
    with pytest.raises(FileNotFoundError, match=f"path must be a folder, got .*/none.*{layout}"):
        data_sets.load("cifar10", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=f"no cifar10 in .*{layout}"):
        data_sets.load("cifar10", tmp_path)
    folder, _ = make_cifar(tmp_path)
    (folder / "data_batch_4.bin").unlink()
    for path in (tmp_path, folder):
        with pytest.raises(FileNotFoundError, match=rf"data_batch_4.bin is missing: {layout}"):
            data_sets.load("cifar10", path)


def test_names_and_options_are_checked(tmp_path):
    make_cifar(tmp_path)
    with pytest.raises(ValueError, match="name must be one of 'digits', 'cifar10'"):
        data_sets.load("mnist")
    allowed = "train_limit, test_limit, augment, image_size"
    with pytest.raises(ValueError, match=f"options of data set 'cifar10' must be among {allowed}, got 'max_length'"):
        data_sets.load("cifar10", tmp_path, max_length=3)
    for option, value in {"image_size": 24, "augment": "no", "train_limit": 41, "test_limit": 0}.items():
        with pytest.raises(ValueError, match=rf"{option} must be .*, got '?{value}"):
            data_sets.load("cifar10", tmp_path, **{option: value})
    with pytest.raises(ValueError, match="path must be None for data set 'digits'"):
        data_sets.load("digits", tmp_path)


def test_a_limit_takes_each_class_in_turn():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert limited("n", labels, 6).tolist() == [0, 1, 4, 5, 6, 7]
    assert limited("n", labels, 3).tolist() == [0, 4, 6]
    assert limited("n", labels, 4).tolist() == [0, 1, 4, 6], "the fourth: the first second one of a class"
    assert limited("n", labels, 8).tolist() == [0, 1, 2, 4, 5, 6, 7, 8], "class 1 has only two"
    assert limited("n", labels, None).tolist() == list(range(10))


def test_limits_keep_the_first_images_of_each_class():
    everything = data_sets.load("digits")
    data = data_sets.load("digits", train_limit=200, test_limit=30)
    assert (data.train_size, data.test_size) == (200, 30)
    assert data.train_labels.bincount().tolist() == [20] * 10
    assert data.test_labels.bincount().tolist() == [3] * 10
    for label in range(10):
        first = everything.train_images[everything.train_labels == label][:20]
        assert torch.equal(data.train_images[data.train_labels == label], first)


def test_smaller_images_are_means_of_blocks(tmp_path):
    _, content = make_cifar(tmp_path)
    pixels = np.concatenate([images for images, _ in content[:-1]]).reshape(40, 3, 32, 32).astype(float)
    for size in (16, 8):
        data = data_sets.load("cifar10", tmp_path, image_size=size)
        factor = 32 // size
        means = sum(pixels[:, :, i::factor, j::factor] for i in range(factor) for j in range(factor)) / factor**2
        assert np.array_equal(data.train_images.numpy(), np.round(means).astype(np.uint8))
        assert next(data.train_batches(0, 4, 0))[0].shape == (4, 3, size, size)
        assert data.example_inputs().shape == (1, 3, size, size)


def test_training_images_are_normalized_by_channel(tmp_path):
    make_cifar(tmp_path)
    data = data_sets.load("cifar10", tmp_path, augment=False)
    images, _ = whole(data.train_batches(0, 8, 0))
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def crop_and_flip_of_one(image, row, column, flip, frame):
    padded = np.pad(image, ((0, 0), (frame, frame), (frame, frame)))
    crop = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
    return crop[:, :, ::-1] if flip else crop


@pytest.mark.parametrize("size", [32, 16, 4])
def test_crops_and_flips_are_those_of_one_image_after_the_other(size):
    g = generator(size)
    images = torch.randint(256, (300, 2, size, size), generator=g).byte()
    augmentation = CropAndFlip(size)
    draws = augmentation.draw(300, g)
    frame = {32: 4, 16: 2, 4: 0}[size]
    assert draws[:, :2].unique().tolist() == list(range(2 * frame + 1))
    assert 100 < draws[:, 2].sum() < 200
    expected = [crop_and_flip_of_one(*pair, frame) for pair in zip(images.numpy(), *draws.T.tolist(), strict=True)]
    assert np.array_equal(augmentation.apply(images, draws).numpy(), np.stack(expected))


def test_seeds_differ_in_their_low_bits():
    numbers = [(0, 0), (0, 1), (1, 0), (1 << 40, 0), (1, 23), (12, 3), (0, 0, 0), (0,)]
    low = {mixed_seed(*each) & 0xFFFFFFFF for each in numbers}
    assert len(low) == len(numbers)


@pytest.fixture(scope="module", params=["digits", "cifar10", "imagenet"])
def images(request, tmp_path_factory):
    """A small data set with augmentation."""
    if request.param == "digits":
        return data_sets.load("digits", train_limit=100)
    if request.param == "imagenet":
        folder = make_image_folder(tmp_path_factory.mktemp("folder"))
        return data_sets.load("imagenet", folder, image_size=16, workers=0)
    path = tmp_path_factory.mktemp("cifar")
    make_cifar(path)
    return data_sets.load("cifar10", path, image_size=16)


def assert_same_batches(one, other):
    for (inputs, labels), (other_inputs, other_labels) in zip(one, other, strict=True):
        assert_same_bits(inputs, other_inputs)
        assert torch.equal(labels, other_labels)


def test_a_batch_is_the_same_wherever_the_epoch_starts(images):
    batches = list(images.train_batches(3, 8, 5))
    assert len(batches) == images.steps_per_epoch(8) == images.train_size // 8
    for start in range(len(batches) + 1):
        assert_same_batches(images.train_batches(3, 8, 5, start), batches[start:])


def test_epochs_and_seeds_have_orders_of_their_own():
    data = data_sets.load("digits", train_limit=100, augment=False)
    orders = [whole(data.train_batches(epoch, 10, seed))[1].tolist() for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len(set(map(tuple, orders))) == 3


def test_every_batch_of_every_epoch_is_augmented_anew(monkeypatch):
    data = data_sets.load("digits", train_limit=100)
    drawn = []
    draw = data.augmentation.draw
    monkeypatch.setattr(data.augmentation, "draw", lambda n, g: drawn.append(draw(n, g)) or drawn[-1])
    for epoch, seed in ((0, 0), (1, 0), (0, 1)):
        list(data.train_batches(epoch, 20, seed))
    assert len({tuple(grids.flatten().tolist()) for grids in drawn}) == 15


def test_every_sample_comes_once_an_epoch():
    data = data_sets.load("digits", train_limit=100, augment=False)
    shown, labels = whole(data.train_batches(0, 10, 0))
    everything = (data.train_images - data.mean) / data.std
    equal = (shown[:, None] == everything).flatten(2).all(2)
    assert equal.sum(0).tolist() == equal.sum(1).tolist() == [1] * 100
    assert torch.equal(labels, data.train_labels[equal.int().argmax(1)])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_get_parts_of_the_batch_that_one_process_gets(images, world_size):
    parts = [list(images.train_batches(1, 8, 2, 0, rank, world_size)) for rank in range(world_size)]
    assert_same_batches(map(whole, zip(*parts, strict=True)), images.train_batches(1, 8, 2))
    with pytest.raises(ValueError, match="batch_size must be a multiple of world_size = 3, got 8"):
        images.train_batches(0, 8, 0, world_size=3)


def test_the_global_generator_is_neither_read_nor_changed(images):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = list(images.train_batches(0, 8, 0))
    list(images.test_batches(8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_batches(images.train_batches(0, 8, 0), batches)


def test_arguments_of_batches_are_checked_at_the_call():
    data = data_sets.load("digits", train_limit=100)
    for arguments, message in (
        ({"batch_size": 101}, "batch_size must be an int from 1 to 100, got 101"),
        ({"batch_size": 0}, "batch_size must be an int from 1 to 100, got 0"),
        ({"epoch": -1}, "epoch must be an int of at least 0, got -1"),
        ({"start": 11}, "start must be an int from 0 to 10, got 11"),
        ({"rank": 2, "world_size": 2}, "rank must be an int from 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            data.train_batches(**{"epoch": 0, "batch_size": 10, "seed": 0, **arguments})
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1, got 0"):
        data.test_batches(0)


def test_a_copy_moves_and_the_original_stays(sst2_folder, tokenizer):
    tokens, images = data_sets.load("sst2", sst2_folder, tokenizer=tokenizer), data_sets.load("digits")
    for data in (tokens, images):
        inputs, labels = next(data.to("meta").test_batches(2))
        for tensor in (labels, *(inputs.values() if isinstance(inputs, dict) else [inputs])):
            assert tensor.device.type == "meta"
        assert data.device.type == next(data.test_batches(2))[1].device.type == "cpu"


@pytest.mark.gpu
def test_a_gpu_gets_the_same_samples_and_draws(images):
    on_gpu = images.to("cuda")
    assert images.device.type == "cpu"
    for batches in (lambda data: data.train_batches(0, 8, 0), lambda data: data.test_batches(8)):
        for (inputs, labels), (gpu_inputs, gpu_labels) in zip(batches(images), batches(on_gpu), strict=True):
            assert gpu_inputs.device.type == gpu_labels.device.type == "cuda"
            assert torch.equal(gpu_labels.cpu(), labels)
            torch.testing.assert_close(gpu_inputs.cpu(), inputs, rtol=1e-5, atol=1e-5)


def make_image_folder(root):
    """train and val of classes "ant" and "bee", 8 and 4 images each, of sizes around 40x30."""
    for split, n in (("train", 8), ("val", 4)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(256, (40 + i, 30 + 2 * i, 3), generator=generator(i)).byte().numpy()
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i == 1 else 'JPEG'}")
    return root


@pytest.fixture
def image_folder(tmp_path):
    return make_image_folder(tmp_path)


def test_an_image_folder_is_read_by_workers_as_without(image_folder):
    data, by_workers = (data_sets.load("imagenet", image_folder, image_size=16, workers=workers) for workers in (0, 2))
    assert (data.num_classes, data.train_size, data.test_size) == (2, 16, 8)
    assert_same_batches(by_workers.train_batches(0, 4, 0), data.train_batches(0, 4, 0))
    inputs, labels = whole(data.test_batches(3))
    assert inputs.dtype == torch.float32
    assert inputs.shape == (8, 3, 16, 16)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert_same_bits(data.example_inputs(), inputs[:1])


def test_test_images_are_resized_and_cropped_at_the_centre(image_folder):
    data = data_sets.load("imagenet", image_folder, augment=False, image_size=28, workers=0)
    with Image.open(image_folder / "val" / "ant" / "0.JPEG") as image:  # 30 wide, 40 high: the short side becomes 32
        resized = np.asarray(image.resize((32, 42), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized[7:35, 2:30].copy()).permute(2, 0, 1)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    torch.testing.assert_close(data.example_inputs()[0], (expected / 255 - mean) / std)
    shown, labels = whole(data.train_batches(0, 16, 0))
    same = (shown == data.example_inputs()).flatten(1).all(1)
    assert labels[same].sort().values.tolist() == [0, 1], "0.JPEG of both classes of train, as it is in val"
    limited_data = data_sets.load("imagenet", image_folder, train_limit=6, workers=0)
    assert [label for _, label in limited_data.train.samples] == [0] * 3 + [1] * 3


@pytest.mark.parametrize("size", [(500, 375), (60, 80), (1000, 61)])
def test_crops_have_the_usual_areas_and_sides(size):
    width, height = size
    boxes = torch.tensor([random_box(width, height, generator(seed)) for seed in range(500)])
    left, top, right, bottom = boxes.T
    assert min(left.min(), top.min()) == 0
    assert right.max() <= width
    assert bottom.max() == height
    w, h = (right - left).double(), (bottom - top).double()
    # A side is rounded by up to half a pixel.
    assert (((w + 0.5) / (h - 0.5) >= 3 / 4) & ((w - 0.5) / (h + 0.5) <= 4 / 3)).all()
    assert ((w + 0.5) * (h + 0.5) >= 0.08 * width * height).all() or width > 10 * height
    if width < 10 * height:
        assert 0.3 < (w * h).mean() / (width * height) < 0.6
        assert left.unique().numel() > 20


def test_training_images_are_crops_some_of_them_flipped(image_folder):
    data = data_sets.load("imagenet", image_folder, image_size=16, workers=0)
    path, label = data.train.samples[0]
    with Image.open(path) as image:
        flips = 0
        for seed in range(20):
            box = random_box(*image.size, generator(seed))
            crop = np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            torch.manual_seed(seed)
            pixels, shown_label = data.train[0]
            assert shown_label == label
            flipped = np.array_equal(pixels.numpy(), crop[:, :, ::-1])
            assert flipped or np.array_equal(pixels.numpy(), crop)
            flips += flipped
    assert 4 <= flips <= 16


def test_a_damaged_image_folder_is_named(image_folder):
    layout = "expected train/<class>/"
    damaged = image_folder / "val" / "bee" / "2.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:300])
    data = data_sets.load("imagenet", image_folder, workers=0)
    with pytest.raises(ValueError, match=r"bee/2.JPEG is damaged"):
        list(data.test_batches(8))
    (image_folder / "val" / "bee").rename(image_folder / "val" / "cat")
    with pytest.raises(ValueError, match=rf"same classes, got \['bee', 'cat'\] in one only; {layout}"):
        data_sets.load("imagenet", image_folder)
    (image_folder / "val" / "cat").rename(image_folder / "val" / "bee")
    for file in (image_folder / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=f"train/ant has no images: {layout}"):
        data_sets.load("imagenet", image_folder)
    (image_folder / "val").rename(image_folder / "test")
    with pytest.raises(FileNotFoundError, match=f"val has no folders of images: {layout}"):
        data_sets.load("imagenet", image_folder)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", '"']
TRAIN = "sentence\tlabel\n" + "".join(f"a {'good' if i % 2 else 'bad'} film {'a ' * i}\t{i % 2}\n" for i in range(20))
DEV = 'sentence\tlabel\n"a films\t1\nbad bad\t0\na\x85good\t1\n'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def sst2_folder(tmp_path):
    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "dev.tsv").write_text(DEV)
    return tmp_path


def test_sentences_become_tokens_of_one_length(sst2_folder, tokenizer):
    data = data_sets.load("sst2", sst2_folder, tokenizer=tokenizer, max_length=8)
    assert (data.num_classes, data.train_size, data.test_size) == (2, 20, 3)
    (inputs, labels), (last_inputs, last_labels) = data.test_batches(2)
    assert inputs["input_ids"].tolist() == [[2, 10, 5, 8, 9, 3, 0, 0], [2, 7, 7, 3, 0, 0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert labels.tolist() == [1, 0]
    assert last_inputs["input_ids"].shape == (1, 8)
    assert last_labels.tolist() == [1]
    example = data.example_inputs()
    assert example["input_ids"].tolist() == [[2, 5, 7, 8, 3, 0, 0, 0]]
    assert sorted(example) == ["attention_mask", "input_ids"]


def test_tokens_resume_and_part_like_images(sst2_folder, tokenizer):
    data = data_sets.load("sst2", sst2_folder, tokenizer=tokenizer, train_limit=16)
    assert data.train_labels.bincount().tolist() == [8, 8]
    batches = list(data.train_batches(1, 4, 7))
    for inputs, labels in batches:
        assert inputs["input_ids"].shape == (4, 64)
        # The second word is good or bad as the label says: rows and labels stay together.
        assert torch.equal(inputs["input_ids"][:, 2], torch.where(labels == 1, 6, 7))
    resumed = list(data.train_batches(1, 4, 7, start=2))
    halves = [list(data.train_batches(1, 4, 7, 2, rank, 2)) for rank in (0, 1)]
    assert len(resumed) == 2
    for k, (inputs, labels) in enumerate(batches[2:]):
        for key, tokens in inputs.items():
            assert torch.equal(resumed[k][0][key], tokens)
            assert torch.equal(torch.cat([half[k][0][key] for half in halves]), tokens)
        assert torch.equal(resumed[k][1], labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("index\tsentence\n0\tgood\n", "its columns must be sentence and label, got .*'index', 'sentence'"),
        ("sentence\tlabel\ngood\t1\nbad\t2\n", "the label must be 0 or 1, got '2' in line 3"),
        ("sentence\tlabel\ngood\n", "the label must be 0 or 1, got None in line 2"),
        ("sentence\tlabel\n", "no line beside the first"),
        ("", "its columns must be"),
    ],
)
def test_a_damaged_tsv_is_named(sst2_folder, content, message):
    (sst2_folder / "dev.tsv").write_text(content)
    with pytest.raises(ValueError, match=rf"dev.tsv is damaged: .*{message}.*expected train.tsv and dev.tsv"):
        data_sets.load("sst2", sst2_folder)


def test_missing_sentences_and_tokenizers_are_named(sst2_folder):
    with pytest.raises(ValueError, match=r"tokenizer must be a folder or a model's name.*, got '.*/nowhere'"):
        data_sets.load("sst2", sst2_folder, tokenizer=str(sst2_folder / "nowhere"))
    with pytest.raises(ValueError, match="max_length must be an int of at least 3, got 2"):
        data_sets.load("sst2", sst2_folder, max_length=2)
    (sst2_folder / "train.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.tsv is missing: expected train.tsv and dev.tsv"):
        data_sets.load("sst2", sst2_folder)
