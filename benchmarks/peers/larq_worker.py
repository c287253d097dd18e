"""The other side of larq.py: Larq Compute Engine's binary convolutions, in a Python that has it.

Requests come as lines of JSON on the standard input, answers go as lines of JSON to the standard output.
"""

import json
import logging
import sys
import time

import larq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf

logging.disable(logging.WARNING)  # on constraints and metrics that only training needs
FEW, MORE = 1, 4  # convolutions of two models whose times are subtracted


def convolution(channels):
    return larq.layers.QuantConv2D(
        channels,
        3,
        padding="same",
        pad_values=1.0,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        use_bias=False,
    )


def model(size, channels, out, count, weights=None):
    """Convolutions in a row that pass bits on, or side by side on the same bits, each with an output of floats."""
    x = tf.keras.Input((size, size, channels), batch_size=1)
    layers = [convolution(channels) for _ in range(count + (out == "bits"))]
    if out == "bits":
        y = x
        for layer in layers[:-1]:
            y = tf.keras.layers.BatchNormalization()(layer(y))
        outputs = layers[-1](y)
    else:
        outputs = [layer(x) for layer in layers]
    network = tf.keras.Model(x, outputs)
    for layer in layers if weights is not None else ():
        layer.set_weights([weights])
    return lce.convert_keras_model(network)


def predict(flatbuffer, x, threads, indirect):
    interpreter = lce.testing.Interpreter(flatbuffer, num_threads=threads, use_indirect_bgemm=indirect)
    return lambda: interpreter.predict(x)


def verify(request):
    """The float output for given signs, [1, size, size, channels], and weights, [3, 3, channels, channels]."""
    with np.load(request["operands"]) as operands:
        x, weights = operands["x"], operands["w"]
    flatbuffer = model(x.shape[1], x.shape[3], "float", 1, weights)
    np.save(request["result"], predict(flatbuffer, x, 1, request["indirect"])())
    return {}


def measure(request):
    """Milliseconds of one convolution: samples of (time of MORE - time of FEW) / (MORE - FEW), models in turn."""
    size, channels, out = request["size"], request["channels"], request["out"]
    x = np.random.default_rng(0).standard_normal((1, size, size, channels), dtype=np.float32)
    few, more = (
        predict(model(size, channels, out, count), x, request["threads"], request["indirect"]) for count in (FEW, MORE)
    )
    few(), more()
    samples, end = [], time.perf_counter() + request["seconds"]
    while time.perf_counter() < end or len(samples) < 5:
        start = time.perf_counter()
        few()
        middle = time.perf_counter()
        more()
        samples.append(1e3 * ((time.perf_counter() - middle) - (middle - start)) / (MORE - FEW))
    return {"ms": samples, "version": lce.__version__}


for line in sys.stdin:
    request = json.loads(line)
    answer = {"verify": verify, "measure": measure}[request.pop("do")](request)
    print(json.dumps(answer), flush=True)
