"""Puts the page together: a pure function of messages and of what steps found."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from lighten import v1 as pb
from lighten.cli.render import text
from lighten_service.worker.model import Encoding
from lighten_service.worker.report import overview, progress, sensitivity, words
from lighten_service.worker.report.comparison import comparison
from lighten_service.worker.report.grids import grids
from lighten_service.worker.report.integers import proof

if TYPE_CHECKING:
    from lighten_service.worker.analyses import Equalization, Sensitivity


def render_report(
    job: str,
    resolved_spec: pb.JobSpec,
    result: pb.JobResult,
    analyses: Mapping[str, Mapping[str, object]],
    encodings: Sequence[Encoding],
) -> str:
    """Return the report of a finished job as one HTML page, the same for the same arguments.

    Everything that a caller named is escaped, and the page forbids scripts and outside resources.
    Sections without data are left out.

    Args:
        job: resource name of the job.
        analyses: what steps found in detail, by their id (``<step id>.json``).
        encodings: every grid of the optimized model.
    """
    found = {
        name: analyses[report.step.id]
        for report in result.steps
        if (name := report.step.WhichOneof("technique")) and report.step.id in analyses
    }
    measured = cast("Sensitivity | None", found.get("analyze_sensitivity"))
    moved = cast("Equalization | None", found.get("cross_layer_equalization"))
    page = _environment().get_template("report.html.j2")
    return page.render(
        title=resolved_spec.display_name or job,
        job=job,
        result=result,
        verdict=overview.verdict(resolved_spec, result),
        asked=overview.asked(resolved_spec),
        comparison=comparison(resolved_spec, result),
        steps=progress.steps(result),
        guide=progress.guide(resolved_spec, result),
        sensitivity=sensitivity.sensitivity(measured) if measured else None,
        ranges=sensitivity.ranges(measured) if measured else None,
        equalized=sensitivity.equalized(moved.get("layers", [])) if moved else [],
        grids=grids(encodings),
        proof=proof(result.proof) if result.HasField("proof") else None,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lighten_service.worker.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = text.size
    environment.filters["artifact_kind"] = text.artifact_kind
    environment.filters["cpu"] = text.cpu
    environment.filters["count"] = words.count
    environment.filters["plural"] = words.plural
    return environment
