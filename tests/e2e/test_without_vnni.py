"""Jobs as a user runs them, on an x86 CPU whose kernels for INT8 weights saturate."""

import json
from collections.abc import Iterator

import pytest

import lighten
from lighten import v1 as pb
from tests.support import prefixed_server
from tests.support.emulation.cpu import Cpu
from tests.support.lighten_server import LightenServer, s3_settings
from tests.support.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROVEN = {pb.INTEGER_VERDICT_BOUNDED, pb.INTEGER_VERDICT_EXACT_IN_RUNTIME}


@pytest.fixture
def client(
    seaweedfs: SeaweedFS,
    bucket: str,
    x86_without_vnni: Cpu,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[lighten.Client]:
    settings = {
        **s3_settings(seaweedfs, f"{bucket}/without-vnni"),
        prefixed_server.VARIABLE: json.dumps(x86_without_vnni.prefix),
        "LIGHTEN_EXECUTOR__WARM_WORKERS": "0",
        "LIGHTEN_EXECUTOR__CPU_SLOTS": "2",
    }
    data = tmp_path_factory.mktemp("without-vnni")
    module = "tests.support.prefixed_server"
    with (
        LightenServer(data, settings, module=module) as server,
        lighten.Client(server.target) as connected,
    ):
        yield connected


def test_jobs_are_published_whether_their_file_is_proven_or_not(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    plan = {**onnx_spec["plan"], "quantization": {"weight_range": "FULL"}}  # type: ignore[dict-item]
    names = [client.submit(spec).name for spec in (onnx_spec, {**onnx_spec, "plan": plan})]
    bound, full = (client.wait(name, 500) for name in names)

    for job in (bound, full):
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert all(check.passed for check in job.result.checks)
        (cpu,) = job.result.provenance.cpus
        assert cpu.int8_saturates
        assert "avx2" in cpu.instruction_sets
        assert not any("vnni" in name for name in cpu.instruction_sets)
    assert {bound.result.proof.x86, bound.result.proof.arm} <= PROVEN
    assert not reasons(bound) & {"NOT_PROVEN_ON_EVERY_CPU", "SATURATED_ON_THIS_CPU"}
    # The gate ran the file's twin; what the file itself gives here stands beside.
    assert full.result.proof.x86 == pb.INTEGER_VERDICT_SATURATES
    assert reasons(full) >= {"NOT_PROVEN_ON_EVERY_CPU", "SATURATED_ON_THIS_CPU"}
    (check,) = [c for c in full.result.checks if c.name == "onnxruntime_optimized"]
    exact = check.values["sqnr_to_fp32_db/scores"]
    assert check.values["published_sqnr_to_fp32_db/scores"] < exact - 3
    workers = client.capabilities().workers
    assert [worker.int8_saturates for worker in workers] == [True]


def reasons(job: pb.Job) -> set[str]:
    return {warning.reason for warning in job.result.warnings}
