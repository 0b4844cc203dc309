"""Every error of the tree reaches a client as its status with its details."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import (
    OptimizationServiceServicer,
    OptimizationServiceStub,
    add_OptimizationServiceServicer_to_server,
)
from lighten_service.api.errors import CODES, DOMAIN
from lighten_service.api.interceptors import REQUEST_ID, CallInterceptor
from lighten_service.jobs import attempts, errors, transitions
from lighten_service.jobs.errors import LightenError, Violation
from lighten_service.telemetry.metrics import Metrics
from tests.support.edge import refused


class Raises(OptimizationServiceServicer):
    """Raises what the test set, from a unary and from a streaming call."""

    def __init__(self) -> None:
        self.error: BaseException = LightenError("X", "x")

    async def GetJob(self, request, context):
        raise self.error

    async def WatchJob(self, request, context):
        yield pb.WatchJobResponse()
        raise self.error


@asynccontextmanager
async def serving(servicer: Raises, metrics: Metrics) -> AsyncIterator[OptimizationServiceStub]:
    server = grpc.aio.server(interceptors=(CallInterceptor(metrics),))
    add_OptimizationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield OptimizationServiceStub(channel)
    await server.stop(None)


def all_errors() -> list[type[LightenError]]:
    found, waiting = [], [LightenError]
    while waiting:
        kind = waiting.pop()
        found += kind.__subclasses__()
        waiting += kind.__subclasses__()
    return found


def test_every_class_has_a_status():
    assert {attempts.AttemptFenced, transitions.InvalidTransition} <= set(all_errors())
    direct = {kind for kind in LightenError.__subclasses__() if kind.__module__ == errors.__name__}
    assert direct == set(CODES)


@pytest.mark.parametrize("kind", list(CODES), ids=lambda kind: kind.__name__)
async def test_an_error_arrives_whole(kind):
    servicer, metrics = Raises(), Metrics()
    servicer.error = kind(
        "SOME_REASON",
        "what to change: ä",
        violations=[Violation("spec.a", "is wrong"), Violation("spec.b", "too")],
        metadata={"limit": "7"},
    )
    async with serving(servicer, metrics) as stub:
        for refusal in (await refused(stub.GetJob(pb.GetJobRequest())), await second(stub)):
            assert refusal.code == CODES[kind]
            assert refusal.message == "what to change: ä"
            assert (refusal.info.domain, refusal.info.reason) == (DOMAIN, "SOME_REASON")
            assert refusal.info.metadata["limit"] == "7"
            assert refusal.info.metadata["kind"] in {"USER", "SYSTEM", "RESOURCE"}
            assert refusal.fields == ["spec.a", "spec.b"]
            retry = refusal.retry.retry_delay.seconds
            assert bool(retry) == (kind is errors.Unavailable)
    name = "lighten.v1.OptimizationService"
    for method, call in (("GetJob", "unary"), ("WatchJob", "stream")):
        labels = {"method": f"{name}/{method}", "kind": call, "code": CODES[kind].name}
        assert metrics.registry.get_sample_value("lighten_rpcs_handled_total", labels) == 1


async def second(stub):
    call = stub.WatchJob(pb.WatchJobRequest())
    await call.read()
    return await refused(call)


async def test_a_fault_of_ours_gives_a_reference_and_no_traceback(capfd, caplog):
    servicer = Raises()
    servicer.error = ZeroDivisionError("secret detail")
    async with serving(servicer, Metrics()) as stub:
        refusal = await refused(stub.GetJob(pb.GetJobRequest()))
    assert refusal.code == grpc.StatusCode.INTERNAL
    assert refusal.reason == "INTERNAL"
    reference = refusal.info.metadata["reference"]
    assert reference in refusal.message
    assert "secret" not in refusal.message
    out = capfd.readouterr()
    log = caplog.text + out.out + out.err
    assert reference in log
    assert "ZeroDivisionError: secret detail" in log


async def test_hundreds_of_violations_fit_into_a_header():
    servicer = Raises()
    violations = [Violation(f"spec.labels[{number}]", "is wrong " * 40) for number in range(500)]
    servicer.error = errors.InvalidArgument("INVALID_FIELD", "x" * 100_000, violations=violations)
    async with serving(servicer, Metrics()) as stub:
        refusal = await refused(stub.GetJob(pb.GetJobRequest()))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields[0] == "spec.labels[0]"
    assert "more fields" in refusal.bad_request.field_violations[-1].description


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("bad id", False), (None, False)])
async def test_request_ids_come_back(sent, kept):
    servicer = Raises()
    servicer.error = errors.NotFound("X", "x")
    async with serving(servicer, Metrics()) as stub:
        call = stub.GetJob(pb.GetJobRequest(), metadata=((REQUEST_ID, sent),) if sent else None)
        await refused(call)
        returned = dict(await call.trailing_metadata())[REQUEST_ID]
    assert returned
    assert (returned == sent) is kept
