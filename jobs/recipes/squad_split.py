"""Splits a file in SQuAD's form into train.jsonl and dev.jsonl, without the questions that have no answer.

    python jobs/recipes/squad_split.py dev-v2.0.json FOLDER

About a fifth of the paragraphs is held out, chosen by a hash of the text. No context is in both files.
"""

import json
import sys
import zlib
from pathlib import Path

from rlhf_ray.data.files import reader


def main(file, folder):
    """Writes both files, and prints how many questions and paragraphs each has."""
    splits = {"train": [], "dev": []}
    for _, row in reader(Path(file)).rows(Path(file)):
        if row["answers"]["text"]:
            splits["dev" if zlib.crc32(row["context"].encode()) % 5 == 0 else "train"].append(row)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        path = Path(folder) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows)} questions about {len({row['context'] for row in rows})} paragraphs")


if __name__ == "__main__":
    main(*sys.argv[1:])
