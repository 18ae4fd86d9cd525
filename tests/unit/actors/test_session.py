"""Run directories that a submitted job may not have."""

import pytest

from rlhf_ray.actors.session import check_run_dir
from rlhf_ray.config import BadInput


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
