"""The process of a user function: calls come in on stdin (pickle), replies go out on stdout (JSON).

It imports nothing of the package, and the parent unpickles nothing that comes from here.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import inspect
import json
import math
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
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # unbuffered by lines, so that what was printed is seen even after a kill
    calls = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a function that reads stdin, or starts a program that does, must not eat the next call
    os.close(null)
    try:
        score = load_function(file, function)
    except BaseException as error:
        send(replies, (False, describe(error, file)))
        return
    send(replies, (True, None))
    while len(head := calls.read(8)) == 8:
        arguments = pickle.loads(calls.read(struct.unpack("<Q", head)[0]))
        try:
            value = score(**arguments)
            value = asyncio.run(value) if inspect.iscoroutine(value) else value
        except Exception as error:
            send(replies, (False, "raised " + describe(error, file)))
            continue
        try:
            send(replies, (True, plain(value)))
        except Exception as error:
            send(replies, (False, str(error)))


def load_function(file: str, function: str) -> Any:
    """The function of a Python file; its folder is importable, this one is not (it has a model.py and a rules.py)."""
    sys.path[0] = os.path.dirname(os.path.abspath(file))
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


def plain(value: Any) -> list[Any]:
    """A list, tuple, array or tensor as a list of float, None or str. Raises TypeError for anything else."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, list | tuple):
        raise TypeError(f"returned {type(value).__name__}; return a list of floats")
    return [number(row.item() if hasattr(row, "item") else row) for row in rows]


def number(value: Any) -> float | str | None:
    """A number as float, None as it is; anything else as text, to be shown where it is refused."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        return f"{type(value).__name__} {value!r}"[:80]
    try:
        return float(value)
    except OverflowError:
        return math.inf


def describe(error: BaseException, file: str) -> str:
    """Kind, message, and the last line of the user's file that ran."""
    path = os.path.abspath(file)
    if isinstance(error, SyntaxError) and error.filename is not None and os.path.abspath(error.filename) == path:
        return f"{type(error).__name__}: {error.msg} at {file}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename) == path]
    place = f" at {file}:{lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


def send(stream: Any, value: Any) -> None:
    """One length-prefixed message."""
    data = json.dumps(value).encode()
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
