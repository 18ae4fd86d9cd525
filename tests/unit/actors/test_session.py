"""Run directories that a submitted job may not have, and what signals do."""

import signal

import pytest

from rlhf_ray.actors.session import SIGNALS, check_run_dir, stop_on_signals
from rlhf_ray.config import BadInput
from rlhf_ray.run.outcome import Stopped


@pytest.mark.parametrize("directory", ["runs/ppo", "ppo", "./ppo", "../shared/ppo"])
def test_a_relative_run_directory_is_refused_under_ray_job_submit(directory):
    with pytest.raises(BadInput, match=rf"run\.dir: '{directory}' is relative.*absolute"):
        check_run_dir(directory, submitted=True)
    check_run_dir(directory, submitted=False)


def test_a_run_directory_within_rays_session_is_refused_under_ray_job_submit():
    inside = "/tmp/ray/session_2026-01-01_00-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_0/runs"
    with pytest.raises(BadInput, match="session directory"):
        check_run_dir(inside, submitted=True)
    check_run_dir("/shared/runs/ppo", submitted=True)


@pytest.mark.parametrize("inside", ["/tmp/ray/session_2026-01-01_00-00-00_000000_1/runs", "/tmp/ray/session_latest/x"])
def test_any_directory_within_rays_session_is_refused_under_ray_job_submit(inside):
    with pytest.raises(BadInput, match="session directory"):
        check_run_dir(inside, submitted=True)


def test_a_signal_raises_stopped_outside_a_deferred_block():
    with pytest.raises(Stopped, match="stopped by SIGTERM; the same command goes on"), stop_on_signals():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_deferred_block_only_sets_a_flag_and_a_later_one_interrupts(monkeypatch, capsys):
    seconds = iter([10.0, 10.9, 11.1])
    monkeypatch.setattr("rlhf_ray.actors.session.time.monotonic", lambda: next(seconds))
    with stop_on_signals() as stop, stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        signal.raise_signal(signal.SIGTERM)  # the same request again, as `timeout` sends it
        assert capsys.readouterr().out.count("stopping after this step") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_restored_and_an_ignored_sighup_stays_ignored():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under `nohup`
    try:
        before = [signal.getsignal(number) for number in SIGNALS]
        with stop_on_signals() as stop:
            assert signal.getsignal(signal.SIGTERM) is stop
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        signal.signal(signal.SIGHUP, earlier)
