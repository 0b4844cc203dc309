"""What is kept for a time only."""

from pathlib import Path

from lighten import v1 as pb
from lighten_service.clock import SystemClock
from lighten_service.jobs.retention import Sweeper
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.signing import UrlSigner
from lighten_service.store import open_store
from tests.support.edge import refused, running_edge

PARENT = "projects/default"


class Later(SystemClock):
    """The clock of a day that has not come."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return super().now() + self._seconds


async def test_expired_uploads_go_unless_a_live_job_reads_them(tmp_path):
    async with running_edge(tmp_path) as edge:
        folders = []
        for name in ("used.onnx", "unused.onnx"):
            request = pb.CreateUploadUrlRequest(parent=PARENT, filename=name)
            upload = await edge.api.CreateUploadUrl(request)
            path = Path(upload.uri.removeprefix("file://"))
            path.parent.mkdir(parents=True)
            path.write_bytes(b"model")
            folders.append(path.parent)
            if name == "used.onnx":
                spec = edge.spec()
                spec.model.artifact.uri = upload.uri
                await edge.create(spec=spec)
        late = pb.CreateUploadUrlRequest(parent=PARENT, filename="a", upload_id="0" * 26)
        assert (await refused(edge.api.CreateUploadUrl(late))).reason == "UPLOAD_EXPIRED"
        root, database = edge.settings.root_uri, edge.settings.database_url
    used, unused = folders
    await sweep(root, database, days=6)
    assert used.exists()
    assert unused.exists()
    await sweep(root, database, days=8)
    assert used.exists()
    assert not unused.exists()


async def sweep(root: str, database: str, *, days: int) -> None:
    clock = Later(days * 86_400)
    store = await open_store(database, clock=clock)
    signer = UrlSigner(bytes(32), "http://localhost", "http://localhost", clock)
    objects = LocalObjectStore([(Path(root.removeprefix("file://")), True)], signer)
    sweeper = Sweeper(
        store,
        objects,
        storage_root=root,
        event_seconds=30 * 86_400,
        upload_seconds=7 * 86_400,
        clock=clock,
    )
    await sweeper.sweep()
    await objects.close()
    await store.close()
