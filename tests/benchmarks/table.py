"""All benchmarks' JSON files as one Markdown table: what the README shows."""

import json
from pathlib import Path


def lines(folder):
    """One line a case: ratio of medians, range over the turns where both sides took turns, seconds of both sides."""
    yield "| benchmark | case | ratio | turns | ours, s | theirs, s |"
    yield "|---|---|---|---|---|---|"
    for file in sorted(folder.glob("*.json")):
        for row in json.loads(file.read_text())["rows"]:
            turns = "{:.2f} to {:.2f}".format(*row["ratio_range"]) if "ratio_range" in row else ""
            name = file.stem.replace("_", " ")
            yield f"| {name} | {row['case']} | {row['ratio']:.2f} | {turns} | {row['ours_s']:.3g} | {row['theirs_s']:.3g} |"


if __name__ == "__main__":
    print("\n".join(lines(Path("build/benchmarks"))))
