"""A judge that no training sees: bag-of-words logistic regression on SST-2, the file named by the variable SST2."""

import csv
import functools
import os


@functools.cache
def classifier():
    """Fitted on a TSV file with the columns sentence and label (about ten seconds)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if "SST2" not in os.environ:
        raise RuntimeError("set SST2 to the training file of SST-2 (TSV with columns sentence and label)")
    with open(os.environ["SST2"], newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(max_iter=1000))
    return model.fit([r["sentence"] for r in rows], [int(r["label"]) for r in rows])


def positive(prompts, completions, **columns):
    """Probability that a completion is positive."""
    return classifier().predict_proba([c.lower() for c in completions])[:, 1].tolist()
