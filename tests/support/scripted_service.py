"""An OptimizationService whose jobs and faults a test writes down, behind a real gRPC server."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import (
    OptimizationServiceServicer,
    add_OptimizationServiceServicer_to_server,
)

TERMINAL = {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED}
JOB = "projects/default/jobs/0123456789abcdefghjkmnpqrs"


def refuse(
    context: grpc.ServicerContext,
    code: int,
    message: str,
    reason: str,
    violations: dict[str, str] | None = None,
) -> None:
    """Abort as the real edge does: with ErrorInfo and BadRequest."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="lighten", metadata={"a": "b"})]
    if violations:
        bad = error_details_pb2.BadRequest()
        for name, description in violations.items():
            bad.field_violations.add(field=name, description=description)
        details.append(bad)
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code, message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))


@dataclass
class Script:
    """What a stream does: break after these sequences, repeat or leave out some."""

    # (sequence, how): "unavailable", "end", "internal"; each happens once.
    breaks: list[tuple[int, str]] = field(default_factory=list)
    # Every resumed stream tells this many older events again.
    repeats: int = 0
    # Sequences that are left out; while `gap_once`, only in the first stream.
    missing: set[int] = field(default_factory=set)
    gap_once: bool = False


class ScriptedService(OptimizationServiceServicer):
    """One server; ``target`` is its address. Use it with ``with``."""

    def __init__(self) -> None:
        self.jobs: dict[str, pb.Job] = {}
        self.events: dict[str, list[pb.JobEvent]] = {}
        self.script = Script()
        self.requests: list[Any] = []
        # UNAVAILABLE this many times before the next unary answer.
        self.unavailable = 0
        self.changes: list[list[pb.WatchJobsResponse]] = []
        self.store = HttpStore()
        self._changed = threading.Condition()
        self._server, self._port = self._serve(0)
        self.target = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._server.start()
        self.store.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(0).wait()
        self.store.stop()

    def restart(self) -> None:
        """Break every connection and come back at the same address."""
        self._server.stop(0).wait()
        self._server, _ = self._serve(self._port)
        self._server.start()

    def _serve(self, port: int) -> tuple[grpc.Server, int]:
        server = grpc.server(ThreadPoolExecutor(16))
        add_OptimizationServiceServicer_to_server(self, server)
        return server, server.add_insecure_port(f"127.0.0.1:{port}")

    def add_job(self, job: pb.Job, events: list[pb.JobEvent]) -> None:
        for number, event in enumerate(events, start=1):
            event.job, event.sequence = job.name, number
            event.time.FromSeconds(1_800_000_000 + number)
        job.last_sequence = len(events)
        with self._changed:
            self.jobs[job.name] = job
            self.events[job.name] = events
            self._changed.notify_all()

    def append(self, name: str, event: pb.JobEvent) -> None:
        with self._changed:
            event.job, event.sequence = name, len(self.events[name]) + 1
            self.events[name].append(event)
            if event.state_changed.to:
                self.jobs[name].state = event.state_changed.to
            self._changed.notify_all()

    # --- the service ----------------------------------------------------------------------------

    def CreateJob(self, request, context):
        self._note(request, context)
        if request.spec.model.format != pb.MODEL_FORMAT_ONNX:
            refuse(
                context,
                code_pb2.INVALID_ARGUMENT,
                "the request has 1 fault",
                "INVALID_FIELDS",
                {"spec.model.format": "must be set"},
            )
        job = pb.Job(name=JOB, state=pb.JOB_STATE_QUEUED, spec=request.spec)
        job.labels.update(request.spec.labels)
        if request.validate_only:
            job.name = ""
        elif JOB not in self.jobs:
            queued = pb.JobEvent(state_changed=pb.StateChanged(to=pb.JOB_STATE_QUEUED))
            self.add_job(job, [queued])
        return pb.CreateJobResponse(job=job)

    def GetJob(self, request, context):
        self._note(request, context)
        return pb.GetJobResponse(job=self._job(request.name, context))

    def ListJobs(self, request, context):
        self._note(request, context)
        jobs = list(self.jobs.values())
        start = int(request.page_token or 0)
        size = request.page_size or 2
        more = start + size < len(jobs)
        token = str(start + size) if more else ""
        return pb.ListJobsResponse(jobs=jobs[start : start + size], next_page_token=token)

    def CancelJob(self, request, context):
        self._note(request, context)
        job = self._job(request.name, context)
        if job.state == pb.JOB_STATE_SUCCEEDED:
            refuse(context, code_pb2.FAILED_PRECONDITION, "the job ended", "JOB_FINISHED")
        change = pb.StateChanged(to=pb.JOB_STATE_CANCELLED)
        self.append(job.name, pb.JobEvent(state_changed=change))
        return pb.CancelJobResponse(job=job)

    def DeleteJob(self, request, context):
        self._note(request, context)
        self._job(request.name, context)
        del self.jobs[request.name]
        return pb.DeleteJobResponse()

    def ListArtifacts(self, request, context):
        job = self._job(request.parent, context)
        return pb.ListArtifactsResponse(artifacts=job.result.artifacts)

    def CreateDownloadUrl(self, request, context):
        self.requests.append(request)
        return pb.CreateDownloadUrlResponse(url=self.store.url(request.artifact))

    def CreateUploadUrl(self, request, context):
        self.requests.append(request)
        folder = request.upload_id or "u1"
        path = f"{folder}/{request.filename}"
        return pb.CreateUploadUrlResponse(
            url=self.store.url(path),
            uri=f"s3://bucket/uploads/{path}",
            upload_id=folder,
            folder_uri=f"s3://bucket/uploads/{folder}/",
        )

    def GetCapabilities(self, request, context):
        return pb.GetCapabilitiesResponse(
            server_version="1.2.3",
            techniques=[pb.TechniqueCapability(name="calibrate", message="lighten.v1.Calibrate")],
            model_formats=[pb.MODEL_FORMAT_ONNX],
        )

    def WatchJob(self, request, context) -> Iterator[pb.WatchJobResponse]:
        self.requests.append(request)
        job = self._job(request.name, context)
        log = self.events[request.name]
        with self._changed:
            snapshot = pb.WatchSnapshot(job=job, last_sequence=len(log), first_retained_sequence=1)
        yield pb.WatchJobResponse(snapshot=snapshot)
        sent = max(0, request.after_sequence - self.script.repeats)
        while context.is_active():
            for event in self._after(log, sent):
                sent = event.sequence
                if sent in self.script.missing:
                    continue
                yield pb.WatchJobResponse(event=event)
                if event.state_changed.to in TERMINAL:
                    return
                if not self._goes_on(sent, context):
                    return
            if job.state in TERMINAL and sent == len(log):
                return

    def _after(self, log: list[pb.JobEvent], sent: int) -> list[pb.JobEvent]:
        with self._changed:
            self._changed.wait_for(lambda: len(log) > sent, 0.2)
            return log[sent:]

    def WatchJobs(self, request, context):
        self.requests.append(request)
        yield from self.changes.pop(0)
        context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    def _goes_on(self, sequence: int, context: grpc.ServicerContext) -> bool:
        for entry in self.script.breaks:
            if entry[0] == sequence:
                self.script.breaks.remove(entry)
                if self.script.gap_once:
                    self.script.missing.clear()
                if entry[1] == "unavailable":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "socket closed")
                if entry[1] == "internal":
                    context.abort(grpc.StatusCode.INTERNAL, "RST_STREAM")
                return False
        return True

    def _note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    def _job(self, name: str, context: grpc.ServicerContext) -> pb.Job:
        if name not in self.jobs:
            refuse(context, code_pb2.NOT_FOUND, f"there is no job {name}", "JOB_NOT_FOUND")
        return self.jobs[name]


class HttpStore:
    """Takes PUT and serves GET with Range from a dictionary."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads = 0
        # The next GET sends half and hangs up.
        self.hang_up = False
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                store.files[self.path[1:]] = self.rfile.read(length)
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                store.reads += 1
                body = store.files[self.path[1:]]
                etag = hashlib.sha256(body).hexdigest()
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.send_header("ETag", f'"{etag}"')
                self.end_headers()
                end = len(body) // 2 if store.hang_up else len(body)
                store.hang_up = False
                self.wfile.write(body[start:end])
                self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{path}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
