"""Which URIs a project may read."""

from pathlib import Path

import pytest

from lighten_service.jobs.errors import InvalidArgument, PermissionDenied
from lighten_service.objects.access import AccessPolicy


@pytest.fixture
def policy() -> AccessPolicy:
    return AccessPolicy(
        "s3://store/lighten",
        s3_allowed={"*": ["s3://shared/models/"], "acme": ["s3://acme-data", "s3://store"]},
        file_roots=[Path("/srv/data"), Path("/srv/with space")],
    )


@pytest.mark.parametrize(
    "uri",
    [
        "s3://shared/models/a.onnx",
        "s3://shared/models/",
        "s3://acme-data/",
        "s3://acme-data/any/thing",
        "s3://store/elsewhere/x",
        "s3://store/lighten/projects/acme/uploads/1/m.onnx",
        "file:///srv/data/x.npz",
        "file://localhost/srv/data/x.npz",
        "file:///srv/with%20space/x",
        "file:///srv/with space/x",
    ],
)
def test_allows(policy: AccessPolicy, uri: str) -> None:
    policy.check_read("acme", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://shared/models-private/a.onnx",
        "s3://shared/other",
        "s3://shared/",
        "s3://other/models/a.onnx",
        # Inside of an allowed bucket, but Lighten's own or another project's.
        "s3://store/lighten/projects/globex/uploads/1/m.onnx",
        "s3://store/lighten/projects/acme-2/x",
        "s3://store/lighten/projects/",
        "s3://store/lighten/cache/steps/1",
        "s3://store/lighten/",
        "s3://store/",
        "file:///srv/database/x",
        "file:///srv/",
        "file:///",
        "file:///etc/passwd",
    ],
)
def test_forbids_and_says_what_is_allowed(policy: AccessPolicy, uri: str) -> None:
    with pytest.raises(PermissionDenied) as caught:
        policy.check_read("acme", uri, field="spec.model.artifact.uri")
    assert caught.value.reason == "OBJECT_FORBIDDEN"
    assert caught.value.field == "spec.model.artifact.uri"
    assert "s3://shared/models/" in caught.value.message
    assert "globex" not in caught.value.message.replace(uri, "")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://shared/models/../other/x",
        "s3://shared/models//x",
        "s3://shared/models/..\\x",
        "file:///srv/data/../../etc/passwd",
        "file:///srv/data/%2e%2e/%2e%2e/etc/passwd",
        "file:///srv/data/..%2f..%2fetc/passwd",
        "file:///srv/data/a%00b",
        "file://host/srv/data/x",
        "file:/srv/data/x",
        "s3:///models/x",
        "S3://shared/models/x",
        "s3://UPPER/x",
        "https://shared/models/x",
        "/srv/data/x",
        "",
    ],
)
def test_refuses_what_is_not_plain(policy: AccessPolicy, uri: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        policy.check_read("acme", uri)
    assert caught.value.reason == "INVALID_URI"


def test_projects_are_kept_apart(policy: AccessPolicy) -> None:
    policy.check_read("globex", "s3://store/lighten/projects/globex/jobs/1/x")
    with pytest.raises(PermissionDenied):
        policy.check_read("globex", "s3://acme-data/x")


def test_a_local_storage_root_below_a_file_root_stays_closed(tmp_path: Path) -> None:
    policy = AccessPolicy(f"{tmp_path.as_uri()}/objects", file_roots=[tmp_path])
    policy.check_read("default", f"file://{tmp_path}/objects/projects/default/x")
    policy.check_read("default", f"file://{tmp_path}/model.onnx")
    for path in ("/objects/projects/other/x", "/objects/projects/", "/"):
        with pytest.raises(PermissionDenied):
            policy.check_read("default", f"file://{tmp_path}{path}")


def test_a_storage_root_behind_a_link_stays_closed_at_its_real_place(tmp_path: Path) -> None:
    (tmp_path / "disk" / "objects").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    policy = AccessPolicy(f"{tmp_path.as_uri()}/link/objects", file_roots=[tmp_path / "disk"])
    policy.check_read("default", f"file://{tmp_path}/link/objects/projects/default/x")
    policy.check_read("default", f"file://{tmp_path}/disk/model.onnx")
    for path in ("disk/objects/projects/other/x", "link/objects/projects/other/x", "disk/"):
        with pytest.raises(PermissionDenied):
            policy.check_read("default", f"file://{tmp_path}/{path}")


def test_private_folders_stay_closed_but_for_the_projects_own_part(tmp_path: Path) -> None:
    data = tmp_path / "lighten"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    policy = AccessPolicy(
        f"{data.as_uri()}/objects", file_roots=[tmp_path], private=[tmp_path / "link"]
    )
    policy.check_read("default", f"file://{data}/objects/projects/default/x")
    policy.check_read("default", f"file://{tmp_path}/lighten-models/model.onnx")
    for path in ("lighten.db", "workers/1/worker.log", "objects/projects/other/x", ""):
        with pytest.raises(PermissionDenied):
            policy.check_read("default", f"file://{data}/{path}")
