"""A job whose worker is killed goes on after its last finished step, to the same bytes."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import psutil
import pytest

import lighten
from lighten import v1 as pb
from tests.support.lighten_server import LightenServer
from tests.support.models import convnet, write_samples, write_state_dict

# For machines that do much else.
PATIENCE_SECONDS = 400.0
STEPS = ["cross_layer_equalization", "calibrate", "ada_round", "bias_correction"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    onnx.save(convnet(), folder / "convnet.onnx")
    write_state_dict(folder / "mobilenet.pth")
    write_samples(folder / "calibration.npz", 32, seed=1)
    write_samples(folder / "evaluation.npz", 48, seed=2)
    return folder


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightenServer]:
    settings = {"LIGHTEN_FILE_ROOTS": str(files)}
    with LightenServer(tmp_path_factory.mktemp("server"), settings) as running:
        yield running


def onnx_spec(files: Path, layers: str = "*") -> dict[str, object]:
    """A job whose third step takes seconds, so that its worker is killed in the middle of it."""
    steps = [
        {"cross_layer_equalization": {}},
        {"calibrate": {"scheme": "SQNR"}},
        {"ada_round": {"iterations": 300, "max_samples": 8, "layers": {"layers": [layers]}}},
        {"bias_correction": {}},
    ]

    def data(name: str) -> dict[str, object]:
        return {"data": {"uri": (files / name).as_uri()}, "format": "NPZ"}

    return {
        "model": {"artifact": {"uri": (files / "convnet.onnx").as_uri()}, "format": "ONNX"},
        "calibration": data("calibration.npz"),
        "evaluation": data("evaluation.npz"),
        "plan": {"steps": {"steps": steps}},
    }


def torch_spec(files: Path) -> dict[str, object]:
    model = {
        "artifact": {"uri": (files / "mobilenet.pth").as_uri()},
        "format": "STATE_DICT",
        "architecture": {"library": "TORCHVISION", "name": "mobilenet_v2", "num_classes": 10},
        "inputs": [{"name": "image", "shape": [3, 32, 32]}],
    }
    return {**onnx_spec(files, layers="features.2.*"), "model": model}


def wait_for_step(server: LightenServer, job: pb.Job, step_id: str) -> None:
    """Wait until the server has stored the result of a step."""
    query = "SELECT bookkeeping FROM jobs WHERE job_id = ?"
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        with sqlite3.connect(f"file:{server.data_dir}/lighten.db?mode=ro", uri=True) as database:
            (kept,) = database.execute(query, [job.name.split("/")[-1]]).fetchone()
        if (json.loads(kept)["step_result"] or {}).get("step_id") == step_id:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step_id} was never kept")


def kill_workers(server: LightenServer) -> None:
    """Kill the busy one and the idle one, which is started anew."""
    for process in psutil.Process(server.pid).children():
        process.kill()


def finish(client: lighten.Client, job: pb.Job) -> tuple[pb.Job, list[pb.JobEvent]]:
    events = list(client.watch(job.name))
    job = client.get(job.name)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    return job, events


def steps_of(events: list[pb.JobEvent], attempt: int) -> list[str]:
    return [
        event.stage.step_id
        for event in events
        if event.HasField("stage_started")
        and event.stage.kind == pb.Stage.KIND_STEP
        and event.attempt == attempt
    ]


def said(events: list[pb.JobEvent]) -> str:
    return "\n".join(event.log.message for event in events if event.HasField("log"))


def warnings_of_steps(result: pb.JobResult) -> list[pb.Warning]:
    return [warning for warning in result.warnings if warning.step_id]


def fields(cpu: pb.AttemptCpu) -> dict[str, object]:
    return {field.name: value for field, value in cpu.ListFields()}


def models(job: pb.Job) -> dict[str, str]:
    """Return the digests of everything that does not tell of seconds."""
    kinds = (pb.ARTIFACT_KIND_ENCODINGS, pb.ARTIFACT_KIND_FLOAT_ONNX, pb.ARTIFACT_KIND_QDQ_ONNX)
    return {one.name: one.sha256 for one in job.result.artifacts if one.kind in kinds}


@pytest.mark.parametrize("make", [onnx_spec, pytest.param(torch_spec, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_the_steps_of_a_killed_worker_are_not_repeated(
    server: LightenServer, files: Path, make: Callable[[Path], dict[str, object]]
) -> None:
    with lighten.Client(server.target) as client:
        undisturbed, _ = finish(client, client.submit(make(files)))
        job = client.submit(make(files))
        wait_for_step(server, job, "calibrate")
        kill_workers(server)
        job, events = finish(client, job)

    assert (job.attempt, job.crashes) == (2, 1)
    assert steps_of(events, 1) == STEPS[:3]
    assert steps_of(events, 2) == STEPS[2:]
    assert "resumed after step 'calibrate' of attempt 1" in said(events)
    assert models(job) == models(undisturbed)
    fractions = [e.progress.fraction for e in events if e.HasField("progress") and e.attempt == 2]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.9

    told, expected = job.result, undisturbed.result
    assert [report.step for report in told.steps] == [report.step for report in expected.steps]
    for report, other in zip(told.steps, expected.steps, strict=True):
        assert report.metrics == other.metrics
        assert report.summary == other.summary
        assert report.seconds > 0
    assert warnings_of_steps(told) == warnings_of_steps(expected) != []
    (cpu,) = expected.provenance.cpus
    assert [*told.provenance.cpus] == [cpu, pb.AttemptCpu(**{**fields(cpu), "attempt": 2})]
    assert "RESUMED_ON_ANOTHER_CPU" not in {warning.reason for warning in told.warnings}
    assert told.optimized.metrics == expected.optimized.metrics
    names = {one.name for one in expected.artifacts}
    assert {one.name for one in told.artifacts} == names


@pytest.mark.slow
def test_a_damaged_step_result_costs_time_alone(server: LightenServer, files: Path) -> None:
    with lighten.Client(server.target) as client:
        job = client.submit(onnx_spec(files))
        wait_for_step(server, job, "calibrate")
        (kept,) = server.data_dir.glob(f"objects/{job.name}/attempts/1/steps/calibrate/*.onnx")
        kept.write_bytes(kept.read_bytes()[:-1] + b"!")
        kill_workers(server)
        job, events = finish(client, job)

    assert steps_of(events, 2) == STEPS
    assert "the job starts from its beginning" in said(events)
    assert [report.step.id for report in job.result.steps] == STEPS
