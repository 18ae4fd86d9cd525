"""The inner end of a side: a process that does one step for each line on stdin and answers with a JSON line.

Whatever else is printed goes to stderr. The first step needs no line: it is the warm-up, and its answer says that the side
is ready.
"""

import json
import os
import sys


class Finished(BaseException):
    """stdin was closed: no more steps are wanted."""


class Gate:
    """Takes stdout over for answers when it is made."""

    def __init__(self):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, **answer):
        """Answers a step, and returns when the next one is asked for. Raises Finished where none will be."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
        if not sys.stdin.readline():
            raise Finished
