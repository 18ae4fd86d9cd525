"""A judge of sentiment that no training sees: a bag-of-words classifier, fitted on SST-2.

The environment variable SST2 names the training file of SST-2, a TSV file with the columns sentence and label.
"""

import csv
import functools
import os


@functools.cache
def classifier():
    """Logistic regression on words and pairs of words. Fitting takes about ten seconds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if "SST2" not in os.environ:
        raise RuntimeError(
            "the variable SST2 is not set; set it to the training file of SST-2 (columns sentence, label)"
        )
    with open(os.environ["SST2"], newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(max_iter=1000))
    return model.fit([row["sentence"] for row in rows], [int(row["label"]) for row in rows])


def positive(prompts, completions, **columns):
    """The probability that a completion is positive."""
    return classifier().predict_proba([completion.lower() for completion in completions])[:, 1].tolist()
