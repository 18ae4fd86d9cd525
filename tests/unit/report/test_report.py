"""What `report` prints: the user's text as it is."""

import pyarrow as pa

from rlhf_ray.cli import main
from rlhf_ray.config.jobs import EvaluateRL
from rlhf_ray.run.reader import evaluation_file
from rlhf_ray.train import evaluation as heldout


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path, capsys):
    run_dir = tmp_path / "run[bold]"
    texts = {"prompt": ["[INST] a :smile: [/INST]"], "completion": ["[red]b"]}
    for step in (0, 2):
        rows = pa.table({"example_id": [0], "sample": [0], **texts, "reward": [1.0], "part/a": [2.0]})
        heldout.write(evaluation_file(run_dir, step), rows, EvaluateRL())
    assert main(["report", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    for text in ("[INST] a :smile: [/INST]", "[red]b", "run[bold]", "[+0.000, +0.000]"):
        assert text in shown
