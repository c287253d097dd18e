"""Data folders of strangers: what is no data of the format is refused in one line with its path, and not waited for."""

import os
import pickle
import socket
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import generator
from PIL import Image, PngImagePlugin
from test_data import DEV, TRAIN, make_cifar, make_image_folder, whole

from stompp_kernels.cli import main
from stompp_kernels.training import data as data_sets


def refused(path, name, folder, error=ValueError, read=True, **options):
    """The message of the error that a data set is refused with: one line that names the path."""

    def attempt():
        data = data_sets.load(name, folder, **options)
        return whole(data.test_batches(3)) if read else data

    with pytest.raises(error) as raised:
        attempt()
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


def png_of(width, height):
    """The PNG of a black image, written without making one: a row of zeros deflates to next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def of_format(kind):
    file = BytesIO()
    Image.new("RGB", (20, 20)).save(file, kind)
    return file.getvalue()


def with_text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (1 << 24), zip=True)
    file = BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


BAD_IMAGES = {
    "a bomb": (lambda: png_of(20_000, 10_000), "must have at most 89478485 pixels"),
    "a small bomb": (lambda: png_of(10_000, 10_000), "must have at most 89478485 pixels"),
    "a thread of pixels": (lambda: png_of(1_000_000, 1), "is too long for its width"),
    "a bomb of text": (with_text_bomb, "is damaged"),
    "GIF": (lambda: of_format("GIF"), "is neither JPEG nor PNG"),
    "TIFF": (lambda: of_format("TIFF"), "is neither JPEG nor PNG"),
    "BMP": (lambda: of_format("BMP"), "is neither JPEG nor PNG"),
    "PPM": (lambda: of_format("PPM"), "is neither JPEG nor PNG"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is neither JPEG nor PNG"),
    "empty": (lambda: b"", "is neither JPEG nor PNG"),
    "text": (lambda: b"hello" * 100, "is neither JPEG nor PNG"),
    "a JPEG of zeros": (lambda: of_format("JPEG")[:300] + bytes(100), "is damaged"),
    "a PNG cut short": (lambda: png_of(300, 300)[:60], "is damaged"),
}


@pytest.fixture
def images(tmp_path):
    return make_image_folder(tmp_path)


# Workers pass every error on in the same way.
@pytest.mark.parametrize(
    ("case", "workers"), [*((case, 0) for case in BAD_IMAGES), ("a bomb", 1), ("a PNG cut short", 2)]
)
def test_a_bad_image_is_one_line_with_its_path(case, workers, images):
    make, message = BAD_IMAGES[case]
    path = images / "val" / "bee" / "2.JPEG"
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert message in refused(path, "imagenet", images, workers=workers)


def test_other_formats_in_the_two_endings_are_read(images):
    path = images / "val" / "bee" / "2.JPEG"
    for mode, kind in (("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "PNG")):
        Image.new(mode, (40, 40)).save(path, kind)
        assert len(whole(data_sets.load("imagenet", images, workers=0).test_batches(8))[1]) == 8


def test_what_file_managers_leave_is_not_data(images):
    inputs, labels = whole(data_sets.load("imagenet", images, workers=0).test_batches(8))
    for split in ("train", "val"):
        (images / split / ".DS_Store").write_bytes(b"\0")
        (images / split / ".ipynb_checkpoints").mkdir()
        for name in ("ant", "bee"):
            for junk in ("._0.JPEG", ".DS_Store", "Thumbs.db", "._1.png"):
                (images / split / name / junk).write_bytes(b"\0\x05\x16\x07")
    data = data_sets.load("imagenet", images, workers=0)
    assert (data.num_classes, data.train_size, data.test_size) == (2, 16, 8)
    again, labels_again = whole(data.test_batches(8))
    assert torch.equal(again, inputs)
    assert torch.equal(labels_again, labels)


def bind_socket(path):
    folder = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(folder)


NO_FILES = {
    "a pipe": os.mkfifo,
    "a socket": bind_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_a_data_set_s_file_that_is_none_is_refused_without_waiting_for_it(case, tmp_path):
    make = NO_FILES[case]
    folder, _ = make_cifar(tmp_path)
    python_folder, _ = make_cifar(tmp_path, "cifar100", "python 3, protocol 4")
    images = make_image_folder(tmp_path / "images")
    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "dev.tsv").write_text(DEV)
    places = {
        "cifar10": (folder / "data_batch_3.bin", tmp_path),
        "cifar100": (python_folder / "test", tmp_path),
        "sst2": (tmp_path / "dev.tsv", tmp_path),
        "imagenet": (images / "train" / "ant" / "3.JPEG", images),
    }
    for name, (path, root) in places.items():
        path.unlink()
        make(path)
        message = refused(path, name, root, read=False)
        assert "must be" in message or "cannot be read" in message


def test_a_class_folder_that_leads_to_itself_is_named(images):
    for split in ("train", "val"):
        (images / split / "loop").symlink_to("loop")
    message = refused(images / "train" / "loop", "imagenet", images, read=False)
    assert "cannot be read: Too many levels of symbolic links" in message


@pytest.mark.parametrize("size", [3 << 40, 3073 * (3 << 28), 3073 * 10_001])
def test_a_huge_sparse_file_is_refused_by_its_size(size, tmp_path):
    folder, _ = make_cifar(tmp_path)
    sparse(folder / "data_batch_2.bin", size)
    message = refused(folder / "data_batch_2.bin", "cifar10", tmp_path, read=False)
    assert f"its size must be a multiple of 3073 bytes, at most 30730000, got {size}" in message


def test_a_huge_sparse_pickle_or_text_is_refused_unread(tmp_path):
    folder, _ = make_cifar(tmp_path, writer="python 2")
    sparse(folder / "data_batch_2", 3 << 40)
    assert "its size must be at most" in refused(folder / "data_batch_2", "cifar10", tmp_path, read=False)
    (tmp_path / "train.tsv").write_text(TRAIN)
    sparse(tmp_path / "dev.tsv", 3 << 40)
    message = refused(tmp_path / "dev.tsv", "sst2", tmp_path, read=False)
    assert "line 1 must have at most 1048576 bytes" in message


def test_a_full_size_file_is_within_the_bounds(tmp_path):
    folder, _ = make_cifar(tmp_path)
    records = torch.randint(10, (10_000, 3073), generator=generator(0)).byte()
    (folder / "data_batch_1.bin").write_bytes(records.numpy().tobytes())
    assert data_sets.load("cifar10", tmp_path).train_size == 10_000 + 32


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value,)
    return value


BAD_PICKLES = {
    "a string of a petabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
    "a frame of a petabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"}.",
    "an int of a gigabyte": b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b"\x01.",
    "brackets without an end": b"\x80\x02" + b"(" * 100_000,
    "a label of many digits": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1 << 100_000]}, 2),
    "a deep shape": b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)R(K\x01"
    + pickle.dumps(nested(100), 2)[2:-1]
    + b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tbU\x06labels]K\x01au.",
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_pickle_that_asks_for_more_than_it_holds_is_refused(case, tmp_path):
    folder, _ = make_cifar(tmp_path, writer="python 2")
    (folder / "data_batch_4").write_bytes(BAD_PICKLES[case])
    assert "is damaged: " in refused(folder / "data_batch_4", "cifar10", tmp_path, read=False)


BAD_TEXTS = {
    "NUL bytes": (b"sentence\tlabel\na\0b\t1\n", "line 2 has a NUL byte"),
    "UTF-16": ("sentence\tlabel\ngood\t1\n".encode("utf-16"), "line 1 has a NUL byte"),
    "Latin-1": ("sentence\tlabel\nvery good\t0\nd\xe9j\xe0 vu\t1\n".encode("latin1"), "line 3 is not in UTF-8"),
    "a column too many": (b"sentence\tlabel\ngood\t1\t2\n", "line 2 must have 2 columns, it has 3"),
    "columns that repeat": (b"sentence\tlabel\tlabel\ngood\t1\t0\n", "its columns must be sentence and label"),
    "a label of -1": (b"sentence\tlabel\ngood\t-1\n", "the label must be 0 or 1, got '-1' in line 2"),
    "a label of 1.0": (b"sentence\tlabel\ngood\t1.0\n", "the label must be 0 or 1, got '1.0' in line 2"),
    "a line without an end": (
        b"sentence\tlabel\n" + b"x" * (1 << 21) + b"\t1\n",
        "line 2 must have at most 1048576 bytes",
    ),
    "commas": (b"sentence,label\ngood,1\n", "its columns must be sentence and label"),
    "a page of the web": (b"<!DOCTYPE html>\n<html>\n", "its columns must be sentence and label"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_text_is_one_short_line_with_its_path(case, tmp_path):
    content, message = BAD_TEXTS[case]
    (tmp_path / "train.tsv").write_bytes(content)
    (tmp_path / "dev.tsv").write_text(DEV)
    found = refused(tmp_path / "train.tsv", "sst2", tmp_path, read=False)
    assert message in found
    assert len(found) < 600


def test_the_command_says_it_in_one_line(images, tmp_path, capsys):
    path = images / "val" / "ant" / "0.JPEG"
    path.write_bytes(b"GIF89a")
    flags = ["--model", "mlp", "--dataset", "imagenet", "--data", str(images), "--epochs", "1", "--batch-size", "4"]
    assert main(["train", *flags, "--device", "cpu", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"stompp: {path} is damaged: it is neither JPEG nor PNG\n"


# Names of the hub


@pytest.fixture
def offline(monkeypatch):
    """No hub: what would ask it is an error."""
    constants = pytest.importorskip("huggingface_hub.constants")

    def fail(*arguments, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("stompp_kernels.models.hub._probe", fail)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda folder, name: data_sets.load("sst2", folder, tokenizer=name), "tokenizer"),
        (lambda folder, name: __import__("stompp_kernels").models.create("bert", 2, pretrained=name), "pretrained"),
    ],
    ids=["tokenizer", "model"],
)
def test_a_name_of_the_hub_fails_at_once_where_the_hub_is_off(make, argument, offline, tmp_path):
    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "dev.tsv").write_text(DEV)
    with pytest.raises(ValueError, match=f"{argument} must be a folder or .*, got 'no-such-model': .*HF_HUB_OFFLINE"):
        make(tmp_path, "no-such-model")
    with pytest.raises((ValueError, FileNotFoundError), match=f"{argument} must be a folder .*no/such/folder"):
        make(tmp_path, "./no/such/folder")


def test_a_hub_that_does_not_answer_is_waited_for_once_and_shortly(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    from stompp_kernels.models import hub as of_models

    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    class Kind:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append(options)
            raise OSError("not in the cache")

    with pytest.raises(ValueError, match=r"got 'some-model': .* the hub at http://127\.0\.0\.1:\d+ does not answer"):
        of_models.from_hub(Kind, "some-model", "tokenizer")
    assert asked == [{"trust_remote_code": False, "local_files_only": True}]
    closed.close()
