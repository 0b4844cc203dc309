"""The operator's pod template, read and refused."""

from pathlib import Path

import pytest
import yaml

from lighten_service.executors.kubernetes import TemplateError, load, quantities

COUNTED = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": 1, "memory": "64Mi"}}
GOOD = {
    "apiVersion": "v1",
    "kind": "PodTemplate",
    "metadata": {"labels": {"team": "a"}},
    "spec": {
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "containers": [
            {"name": "worker", "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
            {"name": "proxy", "image": "proxy:1", "resources": COUNTED},
        ],
    },
}


def write(folder: Path, document: object) -> Path:
    path = folder / "pod.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def test_good_template(tmp_path: Path) -> None:
    template = load(write(tmp_path, GOOD))
    assert template == {"metadata": GOOD["metadata"], "spec": GOOD["spec"]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("a: [", "no YAML"),
        ("- a", "no pod"),
        ({"specs": {}}, "specs: a pod template has metadata and spec alone"),
        ({"spec": []}, ""),
        ({"spec": "x"}, "spec: not a mapping"),
        ({"metadata": {"name": "x"}}, "metadata.name: labels and annotations alone"),
        ({"spec": {"containers": {}}}, "spec.containers: not a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0].name: missing"),
        ({"spec": {"volumes": [{"name": "a"}, {"name": "a"}]}}, 'volumes[1].name: "a" is there'),
        ({"spec": {"volumes": [{"name": "ticket"}]}}, "Lighten's own"),
        ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy: a worker pod is never"),
        ({"spec": {"containers": [{"name": "worker", "args": ["x"]}]}}, "[worker].args"),
        (
            {"spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "no"}]}]}},
            "volumeMounts[0].mountPath: missing",
        ),
        (
            {
                "spec": {
                    "containers": [
                        {"name": "worker", "volumeMounts": [{"name": "no", "mountPath": "/a"}]}
                    ]
                }
            },
            'there is no volume "no"',
        ),
        (
            {"spec": {"containers": [{"name": "proxy", "image": "x"}]}},
            "[proxy].resources.requests.cpu: missing; quotas count every container",
        ),
        (
            {
                "spec": {
                    "initContainers": [
                        {"name": "a", "resources": {**COUNTED, "limits": {"cpu": "x", "memory": 1}}}
                    ]
                }
            },
            '[a].resources.limits.cpu: "x" is no quantity',
        ),
    ],
)
def test_bad_template_is_told_where(tmp_path: Path, document: object, said: str) -> None:
    path = write(tmp_path, document)
    if not said:
        assert load(path) == {}
        return
    with pytest.raises(TemplateError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("64Mi", 64 << 20), ("1G", 10**9), ("3", 3), ("1e3", 1000), ("2k", 2000), ("1Ei", 1 << 60)],
)
def test_quantities(text: str, amount: int) -> None:
    assert quantities.parse(text) == amount


@pytest.mark.parametrize("text", ["", "x", "-1", "1Xi", "NaN", "Infinity"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantities.parse(text)


def test_cpus() -> None:
    assert (quantities.cpus(0.25), quantities.cpus(4)) == ("250m", "4000m")
