"""Writes a step result after each step, and goes on from that of an earlier attempt."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lighten import transfer
from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError, Unavailable
from lighten_service.jobs.support import ENGINES
from lighten_service.worker.checkpoints.decisions import Decisions, Origin, Progress
from lighten_service.worker.checkpoints.reading import InvalidStepResult, same
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.provenance import versions
from lighten_service.worker.publish import upload
from lighten_service.worker.session import Assignment, Session
from lighten_service.worker.transfers import as_lighten_error

_log = logging.getLogger(__name__)

_DECISIONS: Final = "decisions.json"


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step result of an earlier attempt, whole on this machine's disk."""

    attempt: int
    step_id: str
    folder: Path
    decisions: Decisions

    def restore(self, model: WorkingModel) -> Progress:
        """Make a model that was just opened what it was after the step; return what was reported.

        Raises:
            InvalidStepResult: it is another model's, or damaged. The model is of no use then.
        """
        try:
            model.load_state(self.folder, self.decisions.model)
        except LightenError as error:
            raise InvalidStepResult(error.message) from error
        finally:
            shutil.rmtree(self.folder)
        return self.decisions.progress


class StepResults:
    """The step results of one attempt, and the one that it goes on from."""

    def __init__(self, assignment: Assignment, session: Session, scratch: Path) -> None:
        self._assignment = assignment
        self._session = session
        self._scratch = scratch
        self._origin = Origin(
            assignment.job, ENGINES[assignment.resolved_spec.model.format], versions(), {}
        )

    def fetch(self, context: StepContext, input_sha256: Mapping[str, str]) -> StepResult | None:
        """Download the step result to go on from; None where there is none that can be used.

        Args:
            input_sha256: of the job's inputs, by URI.

        Raises:
            Unavailable: storage is out of reach.
        """
        self._origin = replace(self._origin, input_sha256=input_sha256)
        ref = self._assignment.resume_from
        if ref is None:
            return None
        folder = self._scratch / "resume"
        try:
            self._download(context, ref, folder)
            decisions = Decisions.from_text((folder / _DECISIONS).read_bytes())
            steps = self._assignment.resolved_spec.plan.steps.steps
            require_same_job(decisions, self._origin, steps, ref.step_id)
        except (InvalidStepResult, LightenError, OSError) as error:
            if isinstance(error, Unavailable):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            tell_unusable(context, ref.step_id, error)
            return None
        return StepResult(ref.attempt, ref.step_id, folder, decisions)

    def keep(self, context: StepContext, progress: Progress, model: WorkingModel) -> None:
        """Write and upload what the last of the finished steps left, then tell the server.

        A step result that cannot be written costs time after a lost attempt and nothing else, so
        the job goes on without it.
        """
        step_id = progress.steps[-1].step.id
        folder = self._scratch / "steps" / step_id
        folder.mkdir(parents=True)
        try:
            decisions = Decisions(self._origin, progress, model.save_state(folder))
            (folder / _DECISIONS).write_text(decisions.to_text(), encoding="utf-8")
            files = self._upload(context, step_id, sorted(folder.iterdir()))
        except (LightenError, OSError) as error:
            _log.warning("cannot keep the result of step %s: %s", step_id, error)
            context.log(
                f"the result of step '{step_id}' could not be kept ({error}): should this attempt "
                "be lost, its steps run again",
                pb.LOG_LEVEL_WARNING,
            )
            return
        finally:
            shutil.rmtree(folder)
        self._session.step_finished(
            pb.StepResultRef(attempt=self._assignment.attempt, step_id=step_id, files=files)
        )

    def _upload(
        self, context: StepContext, step_id: str, paths: Iterable[Path]
    ) -> list[pb.StepFile]:
        files = []
        for path in paths:
            target = f"steps/{step_id}/{path.name}"
            upload(context, self._session, path, target, self._assignment.attempt_uri)
            digest, size = transfer.sha256_file(path), path.stat().st_size
            files.append(pb.StepFile(path=path.name, bytes=size, sha256=digest))
        return files

    def _download(self, context: StepContext, ref: pb.StepResultRef, folder: Path) -> None:
        folder.mkdir()
        for file in ref.files:
            if Path(file.path).name != file.path:
                raise InvalidStepResult(f"{file.path!r} leaves its folder")

            def sign(path: str = file.path) -> str:
                return self._session.sign_step([path])[0].url

            with as_lighten_error("", f"step '{ref.step_id}', {file.path}"):
                transfer.download(
                    sign(),
                    folder / file.path,
                    sha256=file.sha256,
                    size=file.bytes,
                    refresh=sign,
                    check=context.check,
                    ca=self._session.ca,
                )


def tell_unusable(context: StepContext, step_id: str, error: Exception) -> None:
    """Say that a step result is not used, and why."""
    _log.warning("the result of step %s cannot be used: %s", step_id, error)
    context.log(
        f"the result of step '{step_id}' of an earlier attempt cannot be used ({error}): the job "
        "starts from its beginning",
        pb.LOG_LEVEL_WARNING,
    )


def require_same_job(
    decisions: Decisions, origin: Origin, steps: Sequence[pb.Step], step_id: str
) -> None:
    """Check that a step result is this job's, made by the same software.

    Args:
        steps: of the plan.
        step_id: of the last step that it contains.

    Raises:
        InvalidStepResult: it is not.
    """
    found = decisions.origin
    same(found.job, origin.job, "its job")
    same(found.engine, origin.engine, "its engine")
    same(found.versions, origin.versions, "its software")
    same(found.input_sha256, origin.input_sha256, "what it was made of")
    done = [report.step for report in decisions.progress.steps]
    if not done or done != list(steps[: len(done)]) or done[-1].id != step_id:
        raise InvalidStepResult("its steps are not those of the plan")
