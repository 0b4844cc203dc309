"""TLS and tokens of a real server: renewal while it runs, client certificates, honest errors."""

import asyncio
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import lighten
from lighten import errors
from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten.v1.worker_service_pb2_grpc import WorkerServiceStub
from lighten_service.api import reload
from tests.support.certificates import Authority
from tests.support.edge import refused
from tests.support.secured import Secured, secured
from tests.support.tokens import PROJECT, token_file, token_of

RELOAD_SECONDS = 6.0


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(RELOAD_SECONDS):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.1)


def client_of(server: Secured, who: str = "submitter", **options: object) -> lighten.Client:
    given = {"token": token_of(who), "ca": server.ca, "timeout": 10.0, **options}
    return lighten.Client(server.target, PROJECT, **given)


def is_shown_over_https(server: Secured, ca: Path) -> bool:
    """Whether the port of signed URLs shows a certificate that this authority signed."""
    context = ssl.create_default_context(cafile=ca)
    url = f"{server.plane.addresses.http}/objects/none"
    try:
        urllib.request.urlopen(url, context=context, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 403
    except urllib.error.URLError:
        return False
    return True


async def test_a_renewed_certificate_is_shown_by_both_ports_without_a_restart(
    tmp_path: Path,
) -> None:
    async with secured(tmp_path) as server:
        await asyncio.to_thread(lambda: client_of(server).capabilities())
        assert await asyncio.to_thread(is_shown_over_https, server, server.ca)
        expires = server.metric(
            "lighten_tls_certificate_expiry_timestamp_seconds", certificate="server"
        )
        assert expires == pytest.approx(time.time() + 86_400, abs=60)

        # Another authority's: nobody can take the new certificate for the old one.
        renewed = Authority(tmp_path / "renewed")
        cert, key = renewed.sign("server", days=30)
        shutil.copy(cert, tmp_path / "tls" / "server.pem")
        shutil.copy(key, tmp_path / "tls" / "server.key")

        await until(lambda: is_shown_over_https(server, renewed.ca))
        await asyncio.to_thread(lambda: client_of(server, ca=renewed.ca).capabilities())
        with pytest.raises(errors.FailedPrecondition) as caught:
            await asyncio.to_thread(lambda: client_of(server).capabilities())
        assert caught.value.reason == "SERVER_NOT_TRUSTED"


async def test_a_broken_renewal_keeps_the_certificate_and_counts(tmp_path: Path) -> None:
    async with secured(tmp_path) as server:
        _, other_key = Authority(tmp_path / "other").sign("server")
        shutil.copy(other_key, tmp_path / "tls" / "server.key")
        failures = "lighten_reload_failures_total"
        await until(lambda: server.metric(failures, what="certificate") == 1)
        assert await asyncio.to_thread(is_shown_over_https, server, server.ca)
        await asyncio.to_thread(lambda: client_of(server).capabilities())


async def test_tokens_come_and_go_while_the_server_runs(tmp_path: Path) -> None:
    async with (
        secured(tmp_path) as server,
        grpc.aio.secure_channel(server.target, server.trust()) as channel,
    ):
        api = OptimizationServiceStub(channel)

        async def heard(who: str) -> str:
            metadata = (("authorization", f"Bearer {token_of(who)}"),)
            call = api.ListJobs(pb.ListJobsRequest(parent="projects/vision"), metadata=metadata)
            try:
                await call
            except grpc.aio.AioRpcError:
                return (await refused(call)).reason
            return ""

        async def until_heard(who: str, reason: str) -> None:
            async with asyncio.timeout(RELOAD_SECONDS):
                while await heard(who) != reason:
                    await asyncio.sleep(0.1)

        assert (await heard("newcomer"), await heard("viewer")) == ("INVALID_TOKEN", "")
        metadata = (("authorization", f"Bearer {token_of('newcomer')}"),)
        token_file(server.tokens, newcomer=(PROJECT, "viewer", ""))
        await until_heard("newcomer", "")
        watch = api.WatchJobs(pb.WatchJobsRequest(parent="projects/vision"), metadata=metadata)
        assert (await watch.read()).HasField("synced")

        server.tokens.write_text("[[token]]\nname = 1\n")
        await until(lambda: server.metric("lighten_reload_failures_total", what="tokens") == 1)
        assert (await heard("newcomer"), await heard("viewer")) == ("", "")

        token_file(server.tokens)
        await until_heard("newcomer", "INVALID_TOKEN")
        # A stream that was open tells no more, either.
        request = pb.CreateJobRequest(parent="projects/vision", spec=server.spec())
        submitter = (("authorization", f"Bearer {token_of('submitter')}"),)
        await api.CreateJob(request, metadata=submitter)
        assert (await refused(watch)).reason == "INVALID_TOKEN"


async def test_with_a_client_ca_callers_need_certificate_and_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    cert, key = authority.sign("caller")
    stranger_cert, stranger_key = Authority(tmp_path / "stranger").sign("caller")
    async with secured(tmp_path, authority, tls={"client_ca": authority.ca}) as server:

        def reason(**options: object) -> str:
            try:
                client_of(server, **options).capabilities()
            except errors.LightenError as error:
                return error.reason
            return ""

        heard = await asyncio.gather(
            asyncio.to_thread(reason, cert=cert, key=key),
            asyncio.to_thread(reason, cert=cert, key=key, token=None),
            asyncio.to_thread(reason),
            asyncio.to_thread(reason, cert=stranger_cert, key=stranger_key),
        )
        refusal = "CLIENT_CERTIFICATE_REFUSED"
        assert heard == ["", "TOKEN_MISSING", refusal, refusal]
        # Workers come in by a port of their own, where their token is what counts.
        async with grpc.aio.insecure_channel(server.plane.addresses.workers) as channel:
            call = WorkerServiceStub(channel).ListInputs(pb.ListInputsRequest())
            assert (await refused(call)).reason == "TOKEN_MISSING"


async def test_pods_reach_a_port_with_tls_and_without_client_certificates(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "tls")
    cluster = {
        "executor": {"kind": "kubernetes"},
        "kubernetes": {"namespace": "lighten", "image": "worker"},
    }
    tls = {"client_ca": authority.ca, "ca": authority.ca}
    async with secured(tmp_path, authority, tls=tls, **cluster) as server:
        workers = server.plane.addresses.workers
        assert workers != server.target
        async with grpc.aio.secure_channel(workers, server.trust()) as channel:
            call = WorkerServiceStub(channel).ListInputs(pb.ListInputsRequest())
            assert (await refused(call)).reason == "TOKEN_MISSING"
            probe = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert probe.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await OptimizationServiceStub(channel).GetCapabilities(pb.GetCapabilitiesRequest())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ca": None, "target": "grpcs://{}"}, "SERVER_NOT_TRUSTED"),
        ({"ca": None, "target": "{}"}, "SERVER_SPEAKS_TLS"),
        ({"target": "{}"}, ""),
        ({"target": "grpcs://{}"}, ""),
    ],
)
async def test_a_client_hears_what_its_tls_lacks(
    tmp_path: Path, options: dict[str, str | None], reason: str
) -> None:
    async with secured(tmp_path) as server:
        given = {"ca": server.ca, "token": token_of("viewer"), "timeout": 10.0, **options}
        given["target"] = str(options["target"]).format(server.target)
        async with lighten.aio.Client(**given) as client:
            if not reason:
                await client.capabilities()
                return
            with lighten.Client(**given) as blocking:
                heard = await asyncio.gather(
                    client.capabilities(),
                    asyncio.to_thread(next, blocking.watch("a" * 26)),
                    return_exceptions=True,
                )
        for error in heard:
            assert isinstance(error, errors.FailedPrecondition)
            assert error.reason == reason
            assert "ca" in error.message


async def test_files_move_over_https_with_a_private_ca(tmp_path: Path) -> None:
    async with secured(tmp_path) as server:
        file = tmp_path / "model.onnx"
        file.write_bytes(b"some bytes")
        uploaded = await asyncio.to_thread(lambda: client_of(server).upload(file))
        assert Path(uploaded.uri.removeprefix("file://")).read_bytes() == b"some bytes"
        from lighten import transfer

        request = pb.CreateUploadUrlRequest(parent="projects/vision", filename="x")
        async with grpc.aio.secure_channel(server.target, server.trust()) as channel:
            metadata = (("authorization", f"Bearer {token_of('submitter')}"),)
            api = OptimizationServiceStub(channel)
            url = (await api.CreateUploadUrl(request, metadata=metadata)).url
        assert url.startswith("https://")
        with pytest.raises(transfer.TransferError) as caught:
            await asyncio.to_thread(transfer.upload, url, file)
        assert caught.value.reason == "STORAGE_NOT_TRUSTED"


async def test_readyz_says_when_the_server_drains(tmp_path: Path) -> None:
    def readiness(url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{url}/readyz") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async with secured(tmp_path) as server:
        metrics = server.plane.addresses.metrics
        assert readiness(metrics) == (200, "ready\n")
        await server.plane.drain()
        assert readiness(metrics) == (503, "draining\n")
        with urllib.request.urlopen(f"{metrics}/healthz") as alive:
            assert alive.status == 200
