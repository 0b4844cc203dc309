"""What helm makes of the chart with each file of values: valid for the API and for the server."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from lighten_service.executors.kubernetes import naming, template
from lighten_service.settings import Settings, load
from tests.support.chart import CHART, KUBERNETES, VALUES, HelmError, find, helm, render

pytestmark = pytest.mark.kubernetes

# Kinds of other projects: the API has no schema of them.
FOREIGN = {
    ("cert-manager.io/v1", "Certificate"),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
}
MINIMAL, PRODUCTION, AIR_GAPPED = (
    CHART / "ci" / f"{name}-values.yaml" for name in ("minimal", "gpu-production", "air-gapped")
)
Json = dict[str, Any]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_lint_finds_nothing(path: Path) -> None:
    said = helm("lint", "--strict", CHART, f"--values={path}", f"--kube-version={KUBERNETES}")
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_objects_fit_the_api(path: Path) -> None:
    objects = render(path)
    foreign = set()
    for each in objects:
        kind = (each["apiVersion"], each["kind"])
        if kind in FOREIGN:
            foreign.add(kind)
        else:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    assert foreign == (FOREIGN if path == PRODUCTION else set())
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in objects
    ]
    assert len(set(names)) == len(names)


def server_settings(objects: list[Json], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings as the server of a release reads them."""
    data = next(each["data"] for each in objects if "lighten.toml" in each.get("data", {}))
    pod_template = folder / "pod-template.yaml"
    pod_template.write_text(data["pod-template.yaml"])
    config = folder / "lighten.toml"
    config.write_text(
        data["lighten.toml"].replace("/etc/lighten/config/pod-template.yaml", str(pod_template))
    )
    (container,) = find(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        if variable["name"].startswith("LIGHTEN_S3"):
            monkeypatch.setenv(variable["name"], variable["valueFrom"]["secretKeyRef"]["key"])
    template.load(pod_template)
    return load(config)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_server_reads_its_settings(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render(path)
    settings = server_settings(objects, tmp_path, monkeypatch)
    assert not settings.local_workers
    assert not settings.insecure_bind
    assert settings.kubernetes is not None
    assert settings.tls is not None
    ports = {port["name"]: port["containerPort"] for port in server_container(objects)["ports"]}
    assert ports == {
        "grpc": settings.port,
        "objects": settings.http_port,
        "metrics": settings.metrics_port,
        "worker": settings.worker_port,
    }
    # Workers call an address that exists, and look for a name that is in the certificate.
    internal = find(objects, "Service", "-internal")["metadata"]["name"]
    assert settings.kubernetes.server == f"{internal}.lighten.svc:{settings.worker_port}"
    assert settings.kubernetes.server_name == "lighten.lighten.svc"
    mounts = [mount["mountPath"] for mount in server_container(objects)["volumeMounts"]]
    files = (settings.tls.cert, settings.tls.key, settings.tls.ca, settings.tls.client_ca)
    for file in filter(None, (*files, settings.auth and settings.auth.tokens)):
        assert str(file.parent) in mounts


def server_container(objects: list[Json]) -> Json:
    (container,) = find(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    found: Json = container
    return found


def test_values_of_production_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = server_settings(render(PRODUCTION), tmp_path, monkeypatch)
    cluster = settings.kubernetes
    assert cluster is not None
    assert (cluster.namespace, cluster.queue, cluster.cpus) == ("lighten-jobs", "lighten", 8)
    assert [(profile.name, profile.max_gpus) for profile in cluster.gpu_profiles] == [
        ("a100", 4),
        ("l4", 1),
    ]
    assert cluster.gpu_profiles[0].tolerations[0]["key"] == "nvidia.com/gpu"
    assert [each.minimum for each in cluster.priority_classes] == [0, 50]
    assert settings.root_uri == "s3://example-lighten/production"
    assert settings.project_access["vision"] == ("s3://example-vision/datasets/",)
    # From `settings`, which takes any of them.
    assert settings.limits.max_queued_jobs == 2000
    assert settings.s3 is not None
    assert settings.s3.secret_key.get_secret_value() == "secret_key"


def test_nothing_runs_as_root_or_may_write() -> None:
    for path in VALUES:
        spec = find(render(path), "StatefulSet")["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_policies_select_the_pods_that_there_are() -> None:
    objects = render(AIR_GAPPED)
    server = find(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    of_server, of_workers = (each["spec"] for each in policies)
    worker = naming.labels("lighten", ("job", 1), "default")

    def selects(selector: Json, labels: Json) -> bool:
        return selector["matchLabels"].items() <= labels.items()

    assert selects(of_server["podSelector"], server)
    assert not selects(of_server["podSelector"], worker)
    assert selects(of_workers["podSelector"], worker)
    assert not selects(of_workers["podSelector"], server)
    # A worker reaches its own port of the server, names, and storage: nothing else.
    reached = [
        (rule["to"], [port["port"] for port in rule["ports"]]) for rule in of_workers["egress"]
    ]
    assert [ports for _, ports in reached] == [[8473], [53, 53], [9000]]
    assert selects(reached[0][0][0]["podSelector"], server)
    assert reached[2][0] == [{"ipBlock": {"cidr": "10.30.4.0/24"}}]
    assert of_workers["ingress"] == []


def test_rules_and_dashboard_are_whole() -> None:
    objects = render(PRODUCTION)
    groups = find(objects, "PrometheusRule")["spec"]["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 10
    assert "{{ $labels" in str(groups)
    dashboard = find(objects, "ConfigMap", "-dashboard")["data"]["lighten.json"]
    assert dashboard == (CHART / "files" / "dashboard.json").read_text()
    # The monitor scrapes the Service that has the port.
    monitor = find(objects, "ServiceMonitor")["spec"]
    internal = find(objects, "Service", "-internal")
    assert monitor["selector"]["matchLabels"].items() <= internal["metadata"]["labels"].items()
    others = [each for each in objects if each["kind"] == "Service" and each is not internal]
    for other in others:
        assert not monitor["selector"]["matchLabels"].items() <= other["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "tls.existingSecret or tls.certManager"),
        ({"tls": {"existingSecret": "t"}}, "auth.existingSecret"),
        (
            {
                "tls": {"existingSecret": "t", "certManager": {"enabled": True}},
                "auth": {"existingSecret": "a"},
            },
            "choose one",
        ),
        (
            {"tls": {"certManager": {"enabled": True}}, "auth": {"existingSecret": "a"}},
            "tls.certManager.issuerRef.name is missing",
        ),
        ({"insecure": True, "tls": {"clientCa": {"existingSecret": "c"}}}, "clientCa needs TLS"),
        ({"insecure": True, "settings": {"insecure_bind": True}}, "settings.insecure_bind"),
        ({"insecure": True, "settings": {"s3": {"secret_key": "s"}}}, "stand in a ConfigMap"),
        ({"insecure": True, "storage": {"root": "s3://lighten"}}, "storage.s3.existingSecret"),
        ({"insecure": True, "storage": {"root": "s3://lighten/"}}, "/storage/root"),
        ({"insecure": True, "image": {"tga": "1"}}, "'tga' not allowed"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Json, message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render(values=values)


def test_insecure_in_so_many_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = server_settings(render(values={"insecure": True}), tmp_path, monkeypatch)
    assert settings.insecure_bind
    assert settings.tls is None
    assert settings.worker_url == "http://lighten.lighten.svc:8471"


def test_a_changed_setting_restarts_the_server() -> None:
    def checksum(values: Json) -> str:
        pod = find(render(MINIMAL, values=values), "StatefulSet")["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"settings": {"log_level": "debug"}})
    assert checksum({}) != checksum({"workers": {"podTemplate": {"metadata": {"labels": {}}}}})
