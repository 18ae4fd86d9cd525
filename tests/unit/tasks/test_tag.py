"""Tags of words: which token bears one, and lists that do not fit."""

import pytest

from rlhf_ray.config import TagJob
from rlhf_ray.data.examples import DataError
from rlhf_ray.tasks.tag import labels_of, prepare
from tests.unit.tasks.helpers import job, rows, wordpiece


def test_a_tag_is_learnt_at_the_first_token_of_its_word():
    given = rows({"words": ["unlikely", "book"], "tags": ["X", "Y"]})
    batch = prepare(given, wordpiece(), 16, ("X", "Y")).batch
    assert [wordpiece().decode([t]) for t in batch.tokens[batch.response_mask == 1]] == ["un", "book"]
    assert batch.targets[batch.response_mask == 1].tolist() == [0, 1]


def test_tags_come_from_the_data_if_none_are_given():
    assert labels_of(job(TagJob), rows({"words": ["may"], "tags": ["Y", "X"]})) == ("X", "Y")


@pytest.mark.parametrize(("tags", "says"), [([], "1 words and 0 tags"), (["Z"], "tag is 'Z'")])
def test_tags_that_cannot_be_learnt(tags, says):
    with pytest.raises(DataError, match=says):
        prepare(rows({"words": ["may"], "tags": tags}), wordpiece(), 8, ("X",))
