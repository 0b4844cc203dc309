"""Settings of the Kubernetes executor, and what is made of them."""

from pathlib import Path

import pytest

from lighten_service.executor_setup import make_executor
from lighten_service.executors.kubernetes import KubernetesExecutor
from lighten_service.settings import Settings, SettingsError, load
from lighten_service.telemetry.metrics import Metrics

GOOD = """
[executor]
kind = "kubernetes"
[kubernetes]
namespace = "lighten"
image = "registry.test/worker:1"
queue = "team"
[[kubernetes.gpu_profiles]]
name = "a100"
description = "NVIDIA A100"
node_selector = {"nvidia.com/gpu.product" = "A100"}
tolerations = [{key = "gpu", operator = "Exists"}]
[[kubernetes.priority_classes]]
minimum = 50
pod = "high"
"""


def read(folder: Path, text: str) -> Settings:
    config = folder / "lighten.toml"
    config.write_text(f'data_dir = "{folder}"\n' + text)
    return load(config)


def test_settings_make_an_executor(tmp_path: Path) -> None:
    settings = read(tmp_path, GOOD)
    executor = make_executor(settings, "127.0.0.1:8470", Metrics())
    assert isinstance(executor, KubernetesExecutor)
    (profile,) = executor.gpu_profiles
    assert (profile.name, profile.description) == ("a100", "NVIDIA A100")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('namespace = "lighten"\n', "", "kubernetes.namespace"),
        ('"lighten"\n', '"Lighten_1"\n', "kubernetes.namespace"),
        ("queue =", "queues =", "kubernetes.queues"),
        ('name = "a100"', 'name = "A 100"', "kubernetes.gpu_profiles.0.name"),
        ("minimum = 50", "minimum = 5000", "kubernetes.priority_classes.0.minimum"),
        ("[kubernetes]", "[kubernetes]\ncpus = -1", "kubernetes.cpus"),
        ("[kubernetes]", "[kubernetes]\nuser_id = 0", "kubernetes.user_id"),
        ("[kubernetes]", '[kubernetes]\nserver = "https://x"', "kubernetes.server"),
        ("[kubernetes]", '[kubernetes]\nkubeconfig = "/no/such"', "there is no file /no/such"),
        ("[kubernetes]", '[kubernetes]\npod_template = "/no/such"', "there is no file /no/such"),
        ("[executor]", 'bind = "0.0.0.0"\ninsecure_bind = true\n[executor]', "kubernetes.server"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert said in str(caught.value)


def test_kind_needs_its_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"needs kubernetes\.namespace"):
        read(tmp_path, '[executor]\nkind = "kubernetes"\n')


def test_profile_named_twice(tmp_path: Path) -> None:
    twice = GOOD + '[[kubernetes.gpu_profiles]]\nname = "a100"\n'
    with pytest.raises(SettingsError, match="a100 is there twice"):
        read(tmp_path, twice)


def test_template_is_read_at_the_start(tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text("spec: {restartPolicy: Always}")
    settings = read(
        tmp_path, GOOD.replace("[kubernetes]", f'[kubernetes]\npod_template = "{template}"')
    )
    with pytest.raises(SettingsError, match=r"kubernetes.pod_template: .*restartPolicy"):
        make_executor(settings, "127.0.0.1:8470", Metrics())


@pytest.mark.parametrize("text", ["", "{", "clusters: []", "current-context: none"])
async def test_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(text)
    settings = read(
        tmp_path, GOOD.replace("[kubernetes]", f'[kubernetes]\nkubeconfig = "{kubeconfig}"')
    )
    executor = make_executor(settings, "127.0.0.1:8470", Metrics())

    async def listen(*_: object) -> None: ...

    with pytest.raises(Exception, match="credentials for the Kubernetes API") as caught:
        await executor.open(listen)
    assert getattr(caught.value, "reason", "") == "KUBERNETES_CONFIG_INVALID"
