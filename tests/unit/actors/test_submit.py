"""What `rlhf-ray submit` decides before and after it talks to a cluster."""

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from rlhf_ray.actors import submit
from rlhf_ray.cli import main
from rlhf_ray.config import BadInput, load_job
from tests.helpers import rl_job


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a job file, which is also the current one."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "my job.yaml").write_text(yaml.safe_dump(rl_job()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_request_runs_the_file_in_the_clusters_copy(project):
    file = project / "jobs" / "my job.yaml"
    request = submit.make_request(
        "train",
        load_job(file, ["run.dir=/shared/x"]),
        file,
        project,
        ["run.dir=/shared/x", "run.seed=3"],
        {"SST2": "a b"},
    )
    assert request["entrypoint"] == "rlhf-ray train 'jobs/my job.yaml' run.dir=/shared/x run.seed=3"
    assert request["runtime_env"]["working_dir"] == str(project)
    assert request["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120", "SST2": "a b"}  # rl_job's deadline
    assert "/runs/" in request["runtime_env"]["excludes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["jobs/my job.yaml", "run.dir=runs/x"], "run.dir: 'runs/x' is relative"),
        (["jobs/my job.yaml", "run.dir=/s/x", "--working-dir", "jobs/none"], "--working-dir: no such directory"),
        (["/etc/passwd"], "/etc/passwd"),
        (["jobs/my job.yaml", "rollout.chunk=3"], "unknown key 'chunk'"),
        (["jobs/my job.yaml", "run.dir=/s/x", "--env", "NOT_SET_HERE"], "--env: NOT_SET_HERE is not set here"),
        (["jobs/my job.yaml", "run.dir=/s/x", "--token-file", "none"], "--token-file: none holds no token"),
        (["jobs/my job.yaml", "run.dir=/s/x", "--address", "head:8265"], "--address: 'head:8265' is no URL"),
        (["jobs/my job.yaml", "run.dir=/s/x", "--address", "http://127.0.0.1:9"], "--address: Failed to connect"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(project, capsys, monkeypatch, arguments, says):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert main(["submit", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlhf-ray: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_file_outside_the_working_directory_would_not_be_there(project):
    file = project / "jobs" / "my job.yaml"
    (project / "other").mkdir()
    with pytest.raises(BadInput, match=r"is outside .*/other, of which the cluster gets a copy"):
        submit.make_request("train", load_job(file, ["run.dir=/s/x"]), file, project / "other", [], {})


@pytest.mark.parametrize(
    ("status", "driver", "log", "code"),
    [
        (JobStatus.SUCCEEDED, 0, "", 0),
        (JobStatus.FAILED, 2, "rlhf-ray: run.dir: holds a run", 2),
        (JobStatus.FAILED, 3, "rlhf-ray: stopped after step 3", 3),
        (JobStatus.FAILED, -9, "", 1),
        (JobStatus.FAILED, None, "", 1),
        (JobStatus.STOPPED, None, "step 3/9\nrlhf-ray: stopped after step 3 of 9; the same command\n", 3),
        (JobStatus.STOPPED, None, "step 3/9\nsaid: rlhf-ray: stopped\n", 1),
    ],
)
def test_the_exit_code_is_the_jobs(status, driver, log, code):
    details = JobDetails(type=JobType.SUBMISSION, entrypoint="rlhf-ray", status=status, driver_exit_code=driver)
    assert submit.exit_code(details, log) == code


def test_a_log_that_is_sent_again_is_shown_once(capsys):
    log, text = submit._FollowedLog(), "".join(f"line {i}\n" for i in range(2000))
    log.show(text[:100])
    log.show(text[100:9000])
    log.position = 0  # the connection broke: it comes from its beginning again
    log.show(text[:50])
    log.show(text[50:12000])
    log.position = 0
    log.show(text)
    assert capsys.readouterr().out == text
    assert log.end == text[-submit.LOG_END :]
