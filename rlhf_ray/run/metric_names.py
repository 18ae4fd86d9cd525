"""Every metric that the package logs, with its unit and one sentence: the glossary of metrics.jsonl.

The names are those of metrics.jsonl and of all trackers, and those of a job's results in its manifest. A name in braces
stands for one part of the path that the job chooses: `reward/{term}/mean` describes `reward/helpful/mean`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric or a pattern of metrics: its name, its unit, and what it says, in one sentence."""

    name: str
    unit: str
    text: str


TABLE = """
reward/mean | reward | Mean reward of the step's samples, before any KL penalty.
reward/std | reward | Standard deviation of the samples' rewards.
reward/{term}/mean | score | Mean score of a reward term, before its weight and normalisation.
reward/{term}/std | score | Standard deviation of a reward term's scores.
reward/disagreement | standard deviations | Deviation of several reward models from each other; it grows with drift.
reward/accuracy | share | Share of pairs (or labels) that the reward model gets right; ties are wrong.
reward/margin | nats | Mean score of the chosen answer minus that of the rejected one.
reward/all | reward | Mean reward of all sampled answers (a result of job: sample).
reward/kept | reward | Mean reward of the sampled answers that were kept (a result of job: sample).

rollout/length_mean | tokens | Mean length of the responses.
rollout/length_max | tokens | Length of the longest response.
rollout/truncated | share | Share of responses that reached max_new_tokens without an end token.
rollout/samples | samples | Responses of the step, without those that were left out.
rollout/tokens | tokens | Tokens of these responses.
rollout/groups | groups | Prompts whose samples the step learns from.
rollout/zero_variance_groups | groups | Prompts whose samples all got the same reward; their advantages are 0.
rollout/refills | rounds | How often more prompts were generated because groups did not vary (dynamic sampling).
rollout/dropped | samples | Samples that got no reward and were left out (on_error: drop).
rollout/staleness | steps | Mean number of updates between the policy that sampled and the policy that learns.
rollout/tokens_per_second | tokens/s | Generated tokens for each second in which the busiest engine worked.
rollout/engine_seconds | s | Seconds in which engines generated, summed over all engines.
rollout/idle_share | share | Share of the engines' row slots without a sequence while they generated.

policy/loss | nats | The loss that the actor minimises, with its KL penalty and entropy bonus.
policy/entropy | nats | Mean entropy of the policy at each response token; a fall to 0 means collapse.
policy/clip_low | share | Share of tokens without gradient because the ratio fell below the clip (negative advantage).
policy/clip_high | share | Share of tokens without gradient because the ratio rose above the clip (positive advantage).
policy/ratio_max | ratio | Largest probability ratio of the updated policy to the one that sampled.
advantages/mean_abs | advantage | Mean absolute advantage over the response tokens.
kl/coef | coefficient | Coefficient of the KL penalty; it moves if algorithm.kl.controller is adaptive.
kl/reference | nats | KL divergence of the policy from the reference for each response token, estimator k1.
kl/reference_per_sequence | nats | KL divergence of the policy from the reference for each response, estimator k1.
kl/update | nats | KL divergence of the updated policy from the one before the step, for each token, estimator k3.
kl/update_k1 | nats | The same as kl/update by estimator k1, which may be negative.
kl/mismatch | nats | KL divergence of the learner from the engine for each token, estimator k3.
importance/weight | ratio | Mean importance weight of the tokens, after the cap; near 1 if engine and learner agree.
importance/weight_square | ratio | Mean squared importance weight of the tokens, after the cap.
importance/capped | share | Share of tokens whose importance weight exceeds the cap.
importance/ratio_max | ratio | Largest importance weight before the cap.
importance/effective_samples | share | Effective sample size of the importance weights, as a share of the tokens.

value/loss | reward^2 | The critic's loss: half the mean squared error of its values.
value/clip | share | Share of tokens whose value left the clip, so that the clipped loss counts.
value/explained_variance | share | Share of the returns' variance that the critic explains; 1 is perfect.
value/q | return | Mean Q value of the tokens in the data, by the target heads.
value/v | return | Mean V value before each token in the data.

preference/accuracy | share | Share of pairs whose chosen answer has the larger implicit reward.
preference/margin | nats | Mean implicit reward of the chosen answer minus that of the rejected one.
preference/chosen | nats | Mean implicit reward of the chosen (or desirable) answers.
preference/rejected | nats | Mean implicit reward of the rejected (or undesirable) answers.
preference/reference_point | nats | KTO's estimate of the policy's KL divergence from the reference.

loss/cross_entropy | nats | Mean negative log-probability of the right token or class, without weights or smoothing.
loss/masked | nats | Mean negative log-probability of the masked tokens.
loss/tags | nats | Mean negative log-probability of the words' tags.
loss/span | nats | Mean negative log-probability of the answer's first and last token.
loss/bradley_terry | nats | Mean negative log-probability that the chosen answer wins.
loss/binary_cross_entropy | nats | Mean negative log-probability of the labels 0 and 1.
loss/squared_error | score^2 | Mean squared difference between the reward model's score and the label.
loss/dpo | nats | Mean DPO loss of the pairs.
loss/ipo | squared nats | Mean IPO loss of the pairs.
loss/orpo | nats | Mean ORPO loss of the pairs, with the chosen answers' cross-entropy.
loss/simpo | nats | Mean SimPO loss of the pairs.
loss/kto | loss | Mean KTO loss of the answers.
loss/td | return^2 | Mean squared error of the Q values against their targets (ILQL).
loss/expectile | return^2 | Mean expectile loss of the V values (ILQL).
loss/conservative | nats | Mean conservative loss: how far Q prefers tokens that the data do not take (ILQL).
masked/accuracy | share | Share of the masked tokens that are predicted right.
tags/accuracy | share | Share of the words whose tag is predicted right.
class/accuracy | share | Share of the texts whose class is predicted right.
span/exact | share | Share of the windows whose first and last answer token are both predicted right.

actor/grad_norm | norm | Norm of the actor's gradient before clipping.
actor/skipped_steps | steps | Optimizer steps of the actor skipped for a gradient that is not finite; absent if none.
actor/lr | rate | Learning rate of the actor's update.
actor/mfu | share | Model FLOP/s of the actor's update as a share of the device's peak.
critic/grad_norm | norm | Norm of the critic's gradient before clipping.
critic/skipped_steps | steps | Optimizer steps of the critic skipped for a gradient that is not finite; absent if none.
critic/lr | rate | Learning rate of the critic's update.
critic/mfu | share | Model FLOP/s of the critic's update as a share of the device's peak.

sync/probe_difference | nats | Mean difference of log-probs, engine and learner, on a sync's probe.
sync/bytes | bytes | Size of the weights that are sent to each rollout worker.
sync/bytes_per_second | bytes/s | Size of the weights over the seconds of the whole sync.
sync/verify_share | share | Share of the sync that the slowest worker spent on verification.

time/step | s | Seconds of the step, without its evaluation.
time/rollout | s | Seconds in which the loop waited for rollouts and their rewards.
time/annotate | s | Seconds of the learner's log-probs and values of the rollouts.
time/learn | s | Seconds of the updates of actor and critic.
time/wait | s | Seconds in which the loop waited for rollouts in progress before the weights may change.
time/sync | s | Seconds of the weight sync.
time/evaluate | s | Seconds of the evaluation after the step.
time/previous_checkpoint | s | Seconds of the checkpoint after the step before; the last checkpoint's are in log.jsonl.
step/tokens_per_second | tokens/s | Tokens of the step over its seconds; of RL jobs only response tokens.

usage/device_seconds | device-seconds | Seconds of the step times the job's devices.
usage/tokens | tokens | Tokens of the step.
usage/idle_share | share | Share of the step's device-seconds in which a device had no work.
usage/cost | money | Cost of the step, by cluster.price_per_gpu_hour.
usage/{stage}/device_seconds | device-seconds | Device-seconds of a stage of the step; `other` is what no stage took.
usage/{stage}/cost | money | Cost of a stage of the step.
usage/total_device_seconds | device-seconds | Device-seconds of the run so far, over all its restarts.
usage/total_tokens | tokens | Tokens of the run so far.
usage/total_cost | money | Cost of the run so far.
usage/device_seconds_per_point | device-seconds | The run's device-seconds for each point of reward since step 1.
usage/cost_per_point | money | The run's cost for each point of reward since step 1.

evaluate/reward | reward | Mean reward of the answers to the held-out prompts.
evaluate/part/{term} | score | Mean score of a reward or evaluation term over these answers.
evaluate/kl | nats | KL divergence of the policy from the reference for each of these answers.
evaluate/length | tokens | Mean length of these answers.
evaluate/truncated | share | Share of these answers that reached max_new_tokens without an end token.
evaluate/perplexity | perplexity | Exponential of loss/cross_entropy on held-out examples.
evaluate/accuracy | share | Share of held-out examples whose class or tag is predicted right.
evaluate/precision_macro | share | Precision, averaged over the classes.
evaluate/recall_macro | share | Recall, averaged over the classes.
evaluate/f1_macro | share | F1, averaged over the classes.
evaluate/precision_micro | share | Precision over all examples together.
evaluate/recall_micro | share | Recall over all examples together.
evaluate/f1_micro | share | F1 over all examples together.
evaluate/calibration_error | share | Expected calibration error of the predicted class's probability.
evaluate/reward/calibration_error | share | Expected calibration error of the reward model's probabilities.
evaluate/reward/length_bias | correlation | Spearman correlation of the reward model's score with the text's length.
evaluate/exact_match | share | Share of questions whose answer equals a reference after normalisation.
evaluate/f1 | share | Mean F1 of the words of answer and reference.
evaluate/bleu | 0 to 100 | Corpus BLEU of the translations or answers against their references.
evaluate/chrf | 0 to 100 | Corpus chrF of the translations or answers against their references.
evaluate/distinct_1 | share | Different words over all words of all answers.
evaluate/distinct_2 | share | Different pairs of neighbouring words over all pairs of all answers.
evaluate/{term} | score | Mean score of a reward term over the answers (a result of job: evaluate).

kept | samples | Sampled answers that were kept (a result of job: sample).
scored | rows | Rows that got a score (a result of job: score).
score/mean | score | Mean score of the rows (a result of job: score).
vocab_size | tokens | Size of the trained tokenizer's vocabulary (a result of job: tokenizer).
tokens_per_word | tokens | Tokens that a word of the corpus takes (a result of job: tokenizer).
"""
HELD_OUT = (  # objectives' metrics that supervised jobs also compute on held-out examples
    r"loss/.*|preference/.*|value/[qv]|reward/(accuracy|margin)|(masked|tags|class)/accuracy|span/exact"
)


def _metrics() -> tuple[Metric, ...]:
    """The rows of TABLE, with the held-out ones that follow from HELD_OUT before the patterns for any name."""
    metrics = [Metric(*line.split(" | ")) for line in TABLE.splitlines() if line]
    held_out = [
        Metric(f"evaluate/{metric.name}", metric.unit, f"{metric.text.removesuffix('.')}, on held-out examples.")
        for metric in metrics
        if re.fullmatch(HELD_OUT, metric.name)
    ]
    return (*metrics, *held_out)


METRICS = _metrics()


def describe(name: str) -> Metric | None:
    """The entry of METRICS for a logged name; an exact name comes before a pattern. None if there is none."""
    exact = next((metric for metric in METRICS if metric.name == name), None)
    return exact or next((metric for metric in METRICS if _pattern(metric.name).fullmatch(name)), None)


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    """A regular expression of the names that ``name`` stands for: a part in braces is any text without a slash."""
    return re.compile("[^/]+".join(re.escape(part) for part in re.split(r"\{\w+\}", name)))
