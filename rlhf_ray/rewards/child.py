"""The child process of a user function: reads calls from stdin, writes answers to stdout. Imports nothing of the package."""

import asyncio
import contextlib
import ctypes
import importlib.util
import inspect
import os
import pickle
import signal
import struct
import sys
import traceback
from typing import Any


def main(file: str, function: str, parent: str) -> None:
    """Serves calls until stdin closes or the parent dies. What the function prints goes to stderr."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed reward worker leaves no child behind
    if os.getppid() != int(parent):
        return
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    calls = os.fdopen(os.dup(0), "rb")
    try:
        found = load(file, function)
    except BaseException as error:
        send(answers, (False, describe(error, file)))
        return
    send(answers, (True, None))
    while len(head := calls.read(8)) == 8:
        arguments = pickle.loads(calls.read(struct.unpack("<Q", head)[0]))
        try:
            value = found(**arguments)
            value = asyncio.run(value) if inspect.isawaitable(value) else value
            send(answers, (True, plain(value)))
        except Exception as error:
            send(answers, (False, "raised " + describe(error, file)))


def load(file: str, function: str) -> Any:
    """The function of a Python file; its folder is importable."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    spec = importlib.util.spec_from_file_location("user_reward", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_reward"] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise NameError(f"no function '{function}' in {file}; it has {', '.join(names) or 'none'}")
    return getattr(module, function)


def plain(value: Any) -> Any:
    """Tensors and arrays as lists, so that the parent needs nothing to read them."""
    return value.tolist() if hasattr(value, "tolist") else [v.item() if hasattr(v, "item") else v for v in value] if isinstance(value, list | tuple) else value


def describe(error: BaseException, file: str) -> str:
    """Kind, message, and the last line of the user's file on the way."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename) == os.path.abspath(file)]
    where = f" at {file}:{lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def send(stream: Any, value: Any) -> None:
    """One length-prefixed message."""
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
