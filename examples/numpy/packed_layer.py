"""One binary convolution and one binary matrix product on NumPy arrays, in a process that has no torch.

`STOMPP_CORE=1 STOMPP_BUILD_NATIVE=0 pip install --no-build-isolation --no-deps .` installs all that it needs but NumPy.
"""

import sys

import numpy as np

from stompp_kernels import core


def signs(x):
    """+1 and -1 as the kernels see them: sign(0) = +1."""
    return np.where(x < 0, -1, 1)


def main():
    random = np.random.default_rng(0)
    images = random.standard_normal((2, 8, 8, 40), dtype=np.float32)  # NHWC
    kernel = random.standard_normal((16, 40, 3, 3), dtype=np.float32)
    matrix = random.standard_normal((10, 16 * 8 * 8), dtype=np.float32)

    sums = core.bconv2d(core.pack_signs(images), core.pack_weight(kernel), padding=(1, 1))
    scores = core.bgemm(core.pack_signs(sums.reshape(2, -1).astype(np.float32)), core.pack_weight(matrix))

    assert np.array_equal(scores, signs(sums.reshape(2, -1)) @ signs(matrix).T)
    torch_is_there = sys.modules.get("torch") is not None
    print(f"{core.active_implementation()}: classes {scores.argmax(1).tolist()}, torch imported: {torch_is_there}")


if __name__ == "__main__":
    main()
