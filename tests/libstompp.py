"""libstompp for tests: its C API by ctypes, on torch's tensors."""

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p

import torch

OK, BAD_ARGUMENT, NO_FILE, BAD_FILE, UNSUPPORTED, NO_MEMORY = range(6)
REFUSED = (BAD_FILE, UNSUPPORTED)


class Shape(ctypes.Structure):
    _fields_ = [("rank", c_int32), ("sizes", c_int64 * 8)]

    @classmethod
    def of(cls, sizes):
        return cls(len(sizes), (c_int64 * 8)(*sizes))

    def list(self):
        return list(self.sizes[: self.rank])


class Error(ctypes.Structure):
    _fields_ = [("text", c_char * 512)]


class OpenOptions(ctypes.Structure):
    _fields_ = [("implementation", c_char_p)]


class Description(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("inputs", "outputs", "layers")]
    _fields_ += [("implementation", c_char_p), ("file_bytes", c_int64), ("weight_bytes", c_int64)]


class Layer(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("type", c_char_p), ("arithmetic", c_int32)]
    _fields_ += [("weight", Shape), ("weight_bytes", c_int64)]


class Input(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("shape", Shape)]


class Output(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("capacity", c_int64), ("shape", Shape)]


class Value(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("layer", c_char_p), ("is_bits", c_int32), ("data", c_void_p)]
    _fields_ += [("shape", Shape), ("strides", c_int64 * 8)]

    def tensor(self):
        """A copy: floats, or the words as int32."""
        sizes = self.shape.list()
        if self.is_bits:
            sizes[-1] = -(-sizes[-1] // 32)
            kind, strides = c_int32, None
        else:
            kind, strides = c_float, self.strides[: len(sizes)]
        count = torch.Size(sizes).numel()
        dtype = torch.int32 if self.is_bits else torch.float32
        flat = torch.frombuffer((kind * count).from_address(self.data), dtype=dtype)
        return (flat.reshape(sizes) if strides is None else flat.as_strided(sizes, strides)).clone()


Observe = ctypes.CFUNCTYPE(None, c_void_p, POINTER(Value))


class RunOptions(ctypes.Structure):
    _fields_ = [("threads", c_int32), ("observe", Observe), ("context", c_void_p)]


class StomppError(Exception):
    """A status that is not OK, with its text."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class Library:
    def __init__(self, path):
        self.path, self.c = path, ctypes.CDLL(str(path))
        for name in ("stompp_input_name", "stompp_output_name", "stompp_implementation", "stompp_version"):
            getattr(self.c, name).restype = c_char_p
        self.c.stompp_close.argtypes, self.c.stompp_close.restype = [c_void_p], None
        self.c.stompp_open_memory.argtypes = [c_char_p, c_size_t, *[c_void_p] * 3]

    def call(self, name, *args):
        error = Error()
        status = getattr(self.c, name)(*args, byref(error))
        if status != OK:
            raise StomppError(status, error.text.decode())
        assert error.text == b""

    def implementations(self):
        names = []
        while (name := self.c.stompp_implementation(len(names))) is not None:
            names.append(name.decode())
        return names

    def open(self, source, implementation=None):
        """A network of a path, or of a file's bytes."""
        handle = c_void_p()
        options = byref(OpenOptions(implementation.encode())) if implementation else None
        if isinstance(source, bytes):
            self.call("stompp_open_memory", source, len(source), options, byref(handle))
        else:
            self.call("stompp_open", str(source).encode(), options, byref(handle))
        return Network(self, handle)


class Network:
    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def __del__(self):
        self.library.c.stompp_close(self.handle)

    def describe(self):
        description = Description()
        self.library.call("stompp_describe", self.handle, byref(description))
        return description

    def layers(self):
        found = [Layer() for _ in range(self.describe().layers)]
        for index, layer in enumerate(found):
            self.library.call("stompp_describe_layer", self.handle, index, byref(layer))
        return found

    def plan(self, *sizes):
        """(output shapes, bytes of the arena) for inputs of these sizes."""
        outputs, arena = (Shape * self.describe().outputs)(), c_int64()
        inputs = (Shape * len(sizes))(*map(Shape.of, sizes))
        self.library.call("stompp_plan", self.handle, inputs, len(sizes), outputs, byref(arena))
        return [shape.list() for shape in outputs], arena.value

    def run(self, *inputs, threads=1, observe=None):
        """The outputs; `observe` is called with each value between layers."""
        inputs = [x.float().contiguous() for x in inputs]
        given = (Input * len(inputs))(*(Input(x.data_ptr(), Shape.of(x.shape)) for x in inputs))
        results = [torch.full(shape, torch.nan) for shape in self.plan(*(x.shape for x in inputs))[0]]
        outputs = (Output * len(results))(*(Output(y.data_ptr(), y.numel()) for y in results))
        watch = Observe(lambda _, value: observe(value.contents)) if observe else Observe()
        options = RunOptions(threads, watch, None)
        self.library.call("stompp_run", self.handle, given, len(inputs), outputs, len(results), byref(options))
        assert [y.shape.list() for y in outputs] == [list(y.shape) for y in results]
        return results
