"""Every algorithm of the config has its record, and the record fits the config."""

import typing

import pytest

from rlhf_ray.algorithms import registry
from rlhf_ray.algorithms.registry import ALGORITHMS
from rlhf_ray.config import AlgorithmConfig

VARIANTS = {v.model_fields["type"].default: v for v in typing.get_args(typing.get_args(AlgorithmConfig)[0])}


def test_every_variant_has_a_record_and_every_record_a_variant():
    assert set(ALGORITHMS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_finds_the_clips_it_reads(name):
    needs = {
        registry.clipped_token_ratio: {"clip_low", "clip_high", "dual_clip"},
        registry.clipped_sequence_ratio: {"clip_low", "clip_high"},
        registry.capped_importance: {"clip_high"},
        None: set(),
    }
    assert needs[ALGORITHMS[name].policy_loss] <= set(VARIANTS[name].model_fields)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_process_reward_counts_if_tokens_have_advantages_of_their_own(name):
    per_token = (registry.generalised_advantage, registry.return_to_go, registry.whitened_return)
    assert VARIANTS[name].token_advantages == (ALGORITHMS[name].estimate in per_token)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_greedy_sample_is_generated_if_it_is_the_baseline(name):
    variant = VARIANTS[name]
    assert variant.greedy_baseline == (ALGORITHMS[name].estimate is registry.greedy_baseline)
    assert variant().samples_per_prompt == variant().group_size + variant.greedy_baseline
