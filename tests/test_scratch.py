"""Calls of a kernel after the first take no new pages from the system: one costs as much as some products on it."""

import os
import subprocess
import sys

import pytest
from helpers import IMPLEMENTATIONS

PROGRAM = """
import resource
import sys

import torch
from stompp_kernels import native, ops

torch.set_num_threads(1)


def signs(*shape):
    return ops.pack_signs(torch.randn(*shape))


threshold = ops.Threshold(torch.zeros(1, 64, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
image, rows = signs(1, 56, 56, 64), signs(128, 3072)
floats = torch.randn(1, 64, 28, 28).contiguous(memory_format=torch.channels_last)
one_bit, scale = ops.pack_binary_weight(torch.randn(8, 64, 3, 3)), torch.ones(8)
for implementation in sys.argv[1:]:
    with native.use_implementation(implementation):
        convolution, matrix = ops.pack_conv_weight(torch.randn(64, 64, 3, 3)), ops.pack_weight(torch.randn(64, 3072))
        calls = {
            "bconv2d": lambda: ops.bconv2d(image, convolution, padding=1, epilogue=threshold),
            "bgemm": lambda: ops.bgemm(rows, matrix, threshold),
            "conv2d_binary_weight": lambda: ops.conv2d_binary_weight(floats, one_bit, scale, padding=1),
        }
        for name, call in calls.items():
            for _ in range(3):
                call()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                call()
            print(implementation, name, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_calls_after_the_first_take_no_pages():
    # glibc then asks the system for all that is larger, and gives it back at once.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PROGRAM, *IMPLEMENTATIONS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    faults = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    assert len(faults) == 3 * len(IMPLEMENTATIONS)
    assert {name: count for name, count in faults.items() if float(count) > 5} == {}
