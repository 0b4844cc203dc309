"""The names that the control plane knows without AIMET are those that AIMET packages."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from lighten_service.jobs.support import HARDWARE_CONFIGS
from lighten_service.worker.quantsim import hardware_configs


def test_control_plane_and_worker_know_the_same_names():
    assert hardware_configs() == HARDWARE_CONFIGS


@pytest.mark.parametrize("package", ["aimet_torch", "aimet_onnx"])
def test_the_package_has_the_same_names(package):
    # Read as text: importing it takes seconds.
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0], "common", "quantsim_config")
    source = (folder / "quantsim_config.py").read_text()
    table = re.search(r"_config_file_aliases = \{(.*?)\n\}", source, re.DOTALL)
    assert table is not None
    aliases = dict(re.findall(r'"(\w+)": "(\w+\.json)"', table[1]))
    assert set(aliases) == {"default", *HARDWARE_CONFIGS}
    assert all((folder / name).is_file() for name in aliases.values())
