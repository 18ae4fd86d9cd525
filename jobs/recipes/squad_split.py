"""One file in SQuAD's form as train.jsonl and dev.jsonl, without the questions that have no answer.

python jobs/recipes/squad_split.py dev-v2.0.json FOLDER

Every fifth paragraph or so is held out, by a hash of its text: no context is in both files.
"""

import json
import sys
import zlib
from pathlib import Path

from rlhf_ray.data.files import reader


def main(file, folder):
    """Writes both files and says how many questions and paragraphs each has."""
    parts = {"train": [], "dev": []}
    for _, row in reader(Path(file)).rows(Path(file)):
        if row["answers"]["text"]:
            parts["dev" if zlib.crc32(row["context"].encode()) % 5 == 0 else "train"].append(row)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        path = Path(folder) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows)} questions about {len({row['context'] for row in rows})} paragraphs")


if __name__ == "__main__":
    main(*sys.argv[1:])
