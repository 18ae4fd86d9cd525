"""README's file tree is what docs/tree.py makes of the modules' docstrings."""

import subprocess
import sys

from tests.helpers import ROOT


def test_the_tree_of_the_readme_is_up_to_date():
    check = subprocess.run(
        [sys.executable, "docs/tree.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
