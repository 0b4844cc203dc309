"""Resources that no worker can have are refused when the job is created, or only validated."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lighten import v1 as pb
from lighten_service.executors.kubernetes import admission
from lighten_service.executors.kubernetes.options import GpuProfile, KubernetesOptions, Limits
from tests.support.edge import Edge, refused, running_edge
from tests.support.scripted_pods import ScriptedPods

GIB = 1 << 30
OPTIONS = KubernetesOptions(
    namespace="default",
    server="server:8470",
    image="worker",
    gpu_profiles=[GpuProfile("a100", max_gpus=2), GpuProfile("l4")],
    limits=Limits(gpus=4, memory_bytes=64 * GIB, scratch_bytes=100 * GIB),
)


class LimitedPods(ScriptedPods):
    """As a cluster whose operator allows so much."""

    def admit(self, resources: pb.Resources) -> str | None:
        admission.check(resources, OPTIONS)
        return None


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    pods = LimitedPods([profile.name for profile in OPTIONS.gpu_profiles])
    async with running_edge(tmp_path, executor=pods) as edge:
        yield edge


@pytest.mark.parametrize("validate_only", [False, True])
@pytest.mark.parametrize(
    ("resources", "field", "words"),
    [
        ({"gpus": -1}, "gpus", "0"),
        ({"gpus": 1 << 30}, "gpus", "8"),
        ({"gpus": 5}, "gpus", "this server allows 4"),
        ({"gpus": 3, "gpu_profile": "a100"}, "gpus", "this server allows 2"),
        ({"memory_bytes": -1}, "memory_bytes", "268435456"),
        ({"memory_bytes": 1}, "memory_bytes", "268435456"),
        ({"memory_bytes": 1 << 62}, "memory_bytes", "17592186044416"),
        ({"memory_bytes": 65 * GIB}, "memory_bytes", "ask for less"),
        ({"scratch_bytes": 0}, "scratch_bytes", "67108864"),
        ({"scratch_bytes": 101 * GIB}, "scratch_bytes", "ask for less"),
        ({"gpus": 1, "gpu_profile": "h100"}, "gpu_profile", "the operator defined: a100, l4"),
        ({"gpus": 1, "gpu_profile": "node=gpu-1"}, "gpu_profile", "gpu_profile"),
        ({"gpu_profile": "l4"}, "gpus", "ask for at least 1"),
        ({"gpus": 0, "gpu_profile": "l4"}, "gpus", "ask for at least 1"),
        ({"priority": 5000}, "priority", "1000"),
        ({"max_retries": -1}, "max_retries", "0"),
    ],
)
async def test_refused_with_the_field(
    edge: Edge, resources: dict[str, Any], field: str, words: str, validate_only: bool
) -> None:
    spec = edge.spec()
    spec.resources.MergeFrom(pb.Resources(**resources))
    request = pb.CreateJobRequest(parent="projects/default", spec=spec, validate_only=validate_only)
    refusal = await refused(edge.api.CreateJob(request))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == [f"spec.resources.{field}"]
    assert words in refusal.message
    assert (await edge.api.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs == []


async def test_what_the_operator_offers_is_taken(edge: Edge) -> None:
    spec = edge.spec()
    spec.resources.MergeFrom(pb.Resources(gpus=2, gpu_profile="a100", memory_bytes=64 * GIB))
    assert (await edge.create(spec=spec)).resolved_spec.resources.gpu_profile == "a100"
    offered = (await edge.api.GetCapabilities(pb.GetCapabilitiesRequest())).gpu_profiles
    assert [profile.name for profile in offered] == ["a100", "l4"]
