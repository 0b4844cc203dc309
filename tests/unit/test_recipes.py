"""Every recipe is a spec that a server accepts, and has a page."""

import pytest

from lighten import v1 as pb
from lighten.spec import load_spec
from lighten_service.api.validation import validate
from lighten_service.jobs.spec_rules import check_spec
from tools.demo_data import ROOT

RECIPES = ROOT / "docs" / "recipes"
NAMES = sorted(path.name for path in RECIPES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_a_server_accepts_the_recipe(name: str) -> None:
    spec = load_spec(RECIPES / name / "job.yaml")
    for item in (spec.model.artifact, spec.calibration.data, spec.evaluation.data):
        assert item.uri.startswith("../../../.cache/recipes/")
        item.uri = f"s3://bucket/{item.uri.rsplit('/', 1)[1]}"
    validate(pb.CreateJobRequest(parent="projects/default", spec=spec))
    check_spec(spec, ())


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_has_a_page_that_the_index_names(name: str) -> None:
    page = (RECIPES / name / "README.md").read_text()
    assert f"make recipe NAME={name}\n" in page
    assert f"]({name}/README.md)" in (RECIPES / "README.md").read_text()
