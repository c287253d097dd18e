"""Processes of tests: a fresh interpreter, or a copy of one that has imported torch.

A copy takes milliseconds where the import takes seconds. A copy imports this file, which must not import the package.
"""

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch"])
TIMEOUT = 600
STOMPP = "import sys; from stompp_kernels.cli import main; sys.exit(main(sys.argv[1:]))"


def run_python(code, *arguments, folder=None, **environment):
    """Runs code as ``python -c`` does, in a copy: torch is imported, this package is not, but found."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch, name) for name in ("stdout", "stderr")]
        process = _start(code, arguments, environment, folder or os.getcwd(), outputs)
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(code, TIMEOUT)
        texts = (path.read_text() if path.exists() else "" for path in outputs)
        return subprocess.CompletedProcess(code, process.exitcode, *texts)


def start_stompp(*arguments, output):
    """Starts the ``stompp`` command in a copy, on one thread.

    Returns:
        A ``multiprocessing.Process``, which writes to the end of the file ``output``.
    """
    return _start(STOMPP, arguments, {"OMP_NUM_THREADS": "1"}, os.getcwd(), [output, output])


def run_fresh_python(code, *arguments, **environment):
    """Runs code in a fresh interpreter that finds this package."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=_variables(environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def _variables(changes):
    """The environment with changes; what the tests' own process was forced to is left out."""
    variables = {name: value for name, value in os.environ.items() if name not in ("STOMPP_CPU", "TRITON_INTERPRET")}
    package = importlib.util.find_spec("stompp_kernels").submodule_search_locations[0]
    paths = [os.path.dirname(package), os.path.dirname(__file__), variables.get("PYTHONPATH", "")]
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def _start(code, arguments, environment, folder, outputs):
    words, variables = [*map(str, arguments)], _variables(environment)
    process = SERVER.Process(target=_execute, args=(code, words, variables, str(folder), outputs))
    process.start()
    return process


def _execute(code, arguments, variables, folder, outputs):
    for number, path in enumerate(outputs, 1):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = ["", *variables["PYTHONPATH"].split(os.pathsep)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), vars(main))
