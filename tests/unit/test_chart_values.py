"""The schema of the chart's values takes what is meant and refuses what cannot work."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "lighten"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
Json = dict[str, Any]


def merged(base: Json, over: Json) -> Json:
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            value = merged(result[key], value)
        result[key] = value
    return result


@pytest.mark.parametrize("path", [None, *sorted((CHART / "ci").iterdir())], ids=str)
def test_values_fit(path: Path | None) -> None:
    over = yaml.safe_load(path.read_text()) if path else {}
    assert list(VALIDATOR.iter_errors(merged(VALUES, over))) == []


def test_schema_knows_every_value() -> None:
    def names(values: Json) -> Json:
        return {k: names(v) if isinstance(v, dict) else {} for k, v in values.items()}

    def known(values: Json, schema: Json, where: str) -> None:
        for name, below in values.items():
            at = f"{where}.{name}"
            assert name in schema["properties"], f"{at} is not in values.schema.json"
            if "properties" in schema["properties"][name]:
                known(below, schema["properties"][name], at)

    known(names(VALUES), SCHEMA, "values")


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"replicas": 2}, ""),
        ({"image": {"repository": "lighten:1.0"}}, "image.repository"),
        ({"image": {"digest": "sha256:abc"}}, "image.digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
        ({"service": {"type": "ExternalName"}}, "service.type"),
        ({"service": {"port": 0}}, "service.port"),
        ({"service": {"port": "8470"}}, "service.port"),
        ({"persistence": {"size": "20 GB"}}, "persistence.size"),
        ({"persistence": {"accessModes": ["ReadOnlyMany"]}}, "persistence.accessModes.0"),
        ({"tls": {"secret": "lighten-tls"}}, "tls"),
        ({"tls": {"existingSecret": "Lighten_TLS"}}, "tls.existingSecret"),
        ({"insecure": "yes"}, "insecure"),
        ({"storage": {"root": "lighten-bucket"}}, "storage.root"),
        ({"storage": {"root": "s3://bucket/prefix/"}}, "storage.root"),
        ({"storage": {"s3": {"endpoint": "s3.example.com"}}}, "storage.s3.endpoint"),
        ({"storage": {"s3": {"secretKey": "hunter2"}}}, "storage.s3"),
        ({"storage": {"projectAccess": {"*": ["s3://models"]}}}, "storage.projectAccess.*.0"),
        ({"workers": {"cpus": 0}}, "workers.cpus"),
        ({"workers": {"gpuProfiles": [{"name": "A100"}]}}, "workers.gpuProfiles.0.name"),
        ({"workers": {"gpuProfiles": [{"description": "x"}]}}, "workers.gpuProfiles.0"),
        (
            {"workers": {"gpuProfiles": [{"name": "a", "nodeSelector": {}}]}},
            "workers.gpuProfiles.0",
        ),
        ({"workers": {"podTemplate": {"kind": "Pod"}}}, "workers.podTemplate"),
        ({"networkPolicy": {"callers": [{"cidr": "10.0.0.0/8"}]}}, "networkPolicy.callers.0"),
        ({"networkPolicy": {"storage": {"ports": []}}}, "networkPolicy.storage.ports"),
        ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "monitoring.serviceMonitor"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_value_is_refused(over: Json, where: str) -> None:
    errors = list(VALIDATOR.iter_errors(merged(VALUES, over)))
    assert len(errors) == 1
    assert ".".join(map(str, errors[0].path)).startswith(where)
