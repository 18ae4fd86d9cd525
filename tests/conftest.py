"""Ray authentication and threads for all tests: nothing is written to the user's home."""

import logging
import os
import secrets
import tempfile
from pathlib import Path

import pytest

from rlhf_ray._compat import hide_sklearn
from rlhf_ray.run.events import PackageHandler

hide_sklearn()
os.environ.setdefault("RAY_AUTH_MODE", "token")
if "RAY_AUTH_TOKEN" not in os.environ:
    token_file = Path(tempfile.mkdtemp(prefix="rlhf-ray-test-")) / "token"
    token_file.write_text(secrets.token_hex(32))
    token_file.chmod(0o600)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network, and do not wait for one
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(autouse=True)
def _no_log_stays_open():
    """A test may leave its run directory open, as a crash does: the next one logs nothing there."""
    yield
    for handler in [h for h in logging.getLogger("rlhf_ray").handlers if isinstance(h, PackageHandler)]:
        handler.close()


@pytest.fixture
def notices():
    """The sentences for the terminal that the package logs in a test."""
    sentences = []

    class Collector(PackageHandler):
        def emit(self, record):
            if getattr(record, "terminal", False):
                sentences.append(record.getMessage())

    Collector()
    return sentences
