"""One attempt of one job: fetch, load, prepare, baseline, steps, evaluate, export, verify, publish.

Each stage is a method of ``Pipeline``; ``run`` is their order.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.support import LABEL_METRICS, technique_of
from lighten_service.techniques import run_step
from lighten_service.techniques.base import NotApplicable
from lighten_service.worker.baseline import (
    FP32,
    NAIVE,
    chooses,
    measure_fp32,
    measure_naive,
    record_judge,
)
from lighten_service.worker.checkpoints.decisions import Progress
from lighten_service.worker.checkpoints.reading import InvalidStepResult
from lighten_service.worker.checkpoints.step_results import StepResult, StepResults, tell_unusable
from lighten_service.worker.columns import Column, measure, time_columns, why_not_faster
from lighten_service.worker.context import Reporter, StepContext
from lighten_service.worker.cpu import this_cpu, warn_if_unlike
from lighten_service.worker.data import Samples
from lighten_service.worker.datasets import open_dataset
from lighten_service.worker.engines import open_model
from lighten_service.worker.evaluation import check_outputs
from lighten_service.worker.fetch import Fetched, fetch_inputs
from lighten_service.worker.guide import Known, guide
from lighten_service.worker.integers.proof import describe, is_proven, prove
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.produce import write_analyses, write_outputs, write_report
from lighten_service.worker.provenance import provenance
from lighten_service.worker.publish import (
    MANIFEST_FORMAT_VERSION,
    Product,
    publish_artifacts,
    publish_manifest,
)
from lighten_service.worker.range_cost import can_measure, measure_range_cost
from lighten_service.worker.report import render_report
from lighten_service.worker.samples import Head
from lighten_service.worker.session import Assignment, Session
from lighten_service.worker.stages import RAN_ON_CPU, Stages
from lighten_service.worker.verify import verify

OPTIMIZED = "optimized"
# Samples on which the model is measured after each step; the last step is measured on all.
STEP_SAMPLES = 256
LATENCY_SECONDS = 10.0


def run_attempt(assignment: Assignment, session: Session, reporter: Reporter, scratch: Path) -> str:
    """Do the whole job and return the SHA-256 of the manifest that was uploaded last.

    Raises:
        LightenError: with the stage where it arose.
        Cancelled: the attempt shall stop.
    """
    spec = assignment.resolved_spec
    random.seed(spec.seed)
    np.random.seed(spec.seed % 2**32)  # AIMET draws from the global generator
    pipeline = Pipeline(assignment, session, _stages(assignment, reporter, scratch), scratch)
    try:
        return pipeline.run()
    finally:
        pipeline.close()


def _stages(assignment: Assignment, reporter: Reporter, scratch: Path) -> Stages:
    spec = assignment.resolved_spec
    kinds = [
        pb.Stage.KIND_FETCH,
        pb.Stage.KIND_LOAD,
        pb.Stage.KIND_PREPARE,
        pb.Stage.KIND_BASELINE,
        *([pb.Stage.KIND_PREPARE] if assignment.resume_from else []),
        *[pb.Stage.KIND_STEP] * len(spec.plan.steps.steps),
        *([pb.Stage.KIND_GUIDE] if spec.plan.HasField("goal") else []),
        pb.Stage.KIND_EVALUATE,
        pb.Stage.KIND_EXPORT,
        *([pb.Stage.KIND_VERIFY] if spec.outputs.verify else []),
        pb.Stage.KIND_PUBLISH,
    ]
    return Stages(reporter, spec.plan.quantization, scratch, spec.seed, kinds)


@dataclass
class Pipeline:
    """What one attempt knows so far."""

    assignment: Assignment
    session: Session
    stages: Stages
    scratch: Path
    columns: dict[str, Column] = field(default_factory=dict)
    steps: list[pb.StepReport] = field(default_factory=list)
    # What steps found in detail, by their id.
    analyses: dict[str, Mapping[str, object]] = field(default_factory=dict)
    # Of the attempts that the result comes from; this one is the last.
    cpus: list[pb.AttemptCpu] = field(init=False)
    # Where an earlier attempt got to.
    reached: StepResult | None = None
    # What came of a goal.
    goal: pb.GoalReport | None = None
    # Of the QDQ file.
    proof: pb.IntegerProof | None = None
    # What its weights' range costs.
    range_report: pb.WeightRangeReport | None = None
    _model: WorkingModel | None = None

    def __post_init__(self) -> None:
        self._step_results = StepResults(self.assignment, self.session, self.scratch)
        self.cpus = [this_cpu(self.assignment.attempt)]

    @property
    def spec(self) -> pb.JobSpec:
        return self.assignment.resolved_spec

    def run(self) -> str:
        fetched = self._fetch()
        model = self._load(fetched)
        samples = self._samples()
        self._prepare(model, samples)
        self._baseline(model, samples)
        if self.spec.plan.HasField("goal"):
            model = self._guide(model)
        if self.reached is not None:
            model = self._go_on(self.reached, model, fetched)
        for step in self.spec.plan.steps.steps[len(self.steps) :]:
            self._step(model, step, samples)
        self._evaluate(model, samples)
        products, checks = self._export(model, samples)
        return self._publish(fetched, products, checks, model)

    def close(self) -> None:
        """Free the model; the scratch folder belongs to the executor."""
        if self._model is not None:
            self._model.close()

    def _fetch(self) -> Fetched:
        with self.stages.enter(pb.Stage.KIND_FETCH, "Fetching inputs") as context:
            fetched = fetch_inputs(
                context,
                self.assignment.inputs,
                self.session,
                self.scratch / "inputs",
                scratch_bytes=self.spec.resources.scratch_bytes,
            )
            self.reached = self._step_results.fetch(context, fetched.sha256)
            if self.assignment.resume_from and self.reached is None:
                self.stages.skip(pb.Stage.KIND_PREPARE)
        return fetched

    def _load(self, fetched: Fetched) -> WorkingModel:
        with self.stages.enter(pb.Stage.KIND_LOAD, "Loading model and data") as context:
            for folder in ("model", "data"):
                (self.scratch / folder).mkdir()
            model = self._model = self._open_model(fetched)
            self.stages.device = model.device
            if self.spec.resources.gpus and not model.device.startswith("cuda"):
                context.warn(RAN_ON_CPU, f"a GPU was asked for, the model runs on {model.device}")
            for name in ("calibration", "evaluation"):
                if self.spec.HasField(name):
                    data = self._open(context, name, fetched.paths[f"{name}.data"], model)
                    setattr(self.stages, name, data)
            if self.stages.evaluation is None:
                context.warn(
                    "EVALUATED_ON_CALIBRATION_DATA",
                    "there is no evaluation set: fidelity is measured on the calibration samples",
                )
            self._check_labels()
        return model

    def _open_model(self, fetched: Fetched) -> WorkingModel:
        return open_model(
            self.spec,
            fetched.paths["model.artifact"],
            scratch=self.scratch / "model",
            device="cuda:0" if self.spec.resources.gpus else "cpu",
            seed=self.spec.seed,
        )

    def _check_labels(self) -> None:
        labelled = self.stages.evaluation is not None and self.stages.evaluation.labelled
        if self.spec.metric in LABEL_METRICS and not labelled:
            raise FailedPrecondition(
                "MISSING_LABELS",
                f"{pb.Metric.Name(self.spec.metric)} needs labels, and the evaluation data have "
                "none: add them, or ask for a metric of fidelity",
                field="evaluation.data",
            )

    def _open(self, context: StepContext, name: str, path: Path, model: WorkingModel) -> Samples:
        return open_dataset(
            getattr(self.spec, name),
            path,
            inputs=model.inputs,
            class_names=self.spec.model.class_names,
            scratch=self.scratch / "data",
            field=name,
            on_warning=context.warn,
        )

    def _samples(self) -> Samples:
        samples = self.stages.evaluation or self.stages.calibration
        if samples is None:
            raise FailedPrecondition("NO_DATA", "the job has no samples", field="calibration")
        return samples

    def _prepare(self, model: WorkingModel, samples: Samples) -> None:
        with self.stages.enter(pb.Stage.KIND_PREPARE, "Checking the model on a batch"):
            for batch in Head(samples, 2).batches():
                check_outputs(model.predict(batch.inputs), 0, batch.size)

    def _baseline(self, model: WorkingModel, samples: Samples) -> None:
        with self.stages.enter(pb.Stage.KIND_BASELINE, "Measuring FP32 and naive INT8") as context:
            fp32 = measure_fp32(context.part(0.0, 0.2), model, samples)
            self.columns[fp32.name] = fp32
            if self.stages.calibration is not None and chooses(self.spec.plan):
                self.stages.judge = record_judge(
                    context.part(0.2, 0.3), model, samples, self.stages.calibration, fp32
                )
            if not self.spec.skip_naive and self.stages.calibration is not None:
                naive = measure_naive(
                    context.part(0.3, 1.0),
                    model,
                    samples,
                    fp32=fp32,
                    qdq=self.spec.outputs.qdq_onnx,
                )
                self.columns[naive.name] = naive

    def _go_on(self, reached: StepResult, model: WorkingModel, fetched: Fetched) -> WorkingModel:
        """Return the model as an earlier attempt had it after its last step, or as it came."""
        title = f"Restoring the model after step '{reached.step_id}'"
        with self.stages.enter(pb.Stage.KIND_PREPARE, title) as context:
            try:
                progress = reached.restore(model)
            except InvalidStepResult as error:
                tell_unusable(context, reached.step_id, error)
                model.close()
                self._model = self._open_model(fetched)
                return self._model
            self.steps.extend(progress.steps)
            self.analyses.update(progress.analyses)
            self.stages.warnings.extend(progress.warnings)
            self.cpus[:0] = progress.cpus
            warn_if_unlike(context, self.cpus)
            self.stages.skip(pb.Stage.KIND_STEP, len(progress.steps))
            context.summary = f"resumed after step '{reached.step_id}' of attempt {reached.attempt}"
            context.log(context.summary)
        return model

    def _step(self, model: WorkingModel, step: pb.Step, samples: Samples) -> None:
        last = step == self.spec.plan.steps.steps[-1]
        report = pb.StepReport(step=step, device=model.device)
        technique = technique_of(step)
        title = technique.info.summary if technique else step.id
        with self.stages.enter(pb.Stage.KIND_STEP, title, step_id=step.id) as context:
            began = monotonic()
            try:
                findings = run_step(context.part(0.0, 0.8), model, step)
            except NotApplicable as reason:
                if step.if_not_applicable != pb.IF_NOT_APPLICABLE_SKIP_WITH_WARNING:
                    raise FailedPrecondition(
                        "STEP_NOT_APPLICABLE",
                        f"step '{step.id}': {reason}. Remove the step, or set its "
                        "if_not_applicable to SKIP_WITH_WARNING",
                        field="plan.steps.steps",
                    ) from reason
                context.warn("STEP_SKIPPED", str(reason))
                report.skipped, report.summary = True, str(reason)
            else:
                report.summary = findings.summary
                report.findings.update(findings.values)
                if findings.data:
                    self.analyses[step.id] = findings.data
            report.seconds = monotonic() - began
            context.summary = report.summary
            if not last:
                head = Head(samples, STEP_SAMPLES)
                column = self._measure(context.part(0.8, 1.0), step.id, model, head)
                report.metrics.extend(column.metrics)
                column.recorded.close()
            self.steps.append(report)
            self._keep(context, model)

    def _keep(self, context: StepContext, model: WorkingModel) -> None:
        """Keep what the steps so far have made of the model, for the attempt after this one."""
        done = {report.step.id for report in self.steps}
        warnings = [warning for warning in self.stages.warnings if warning.step_id in done]
        progress = Progress(self.steps, self.analyses, warnings, self.cpus)
        self._step_results.keep(context, progress, model)

    def _guide(self, model: WorkingModel) -> WorkingModel:
        """Return the best model that the goal's budgets allow, in place of the float one."""
        naive = self.columns.get(NAIVE)
        with self.stages.enter(pb.Stage.KIND_GUIDE, "Trying candidates") as context:
            self._model = None  # belongs to the guide
            found = guide(
                context,
                model,
                self.spec.plan.goal,
                metric=self._metric(),
                fp32=self.columns[FP32].metrics,
                naive=Known(naive.metrics, naive.statistics) if naive else None,
            )
            context.summary = found.report.explanation[-1]
        self._model, self.goal = found.model, found.report
        self.stages.quantization = found.report.plan.quantization
        for run in found.runs:
            self.steps.append(run.report)
            self.stages.warnings.extend(run.warnings)
            if run.data:
                self.analyses[run.report.step.id] = run.data
        return found.model

    def _evaluate(self, model: WorkingModel, samples: Samples) -> None:
        title = "Measuring the optimized model"
        with self.stages.enter(pb.Stage.KIND_EVALUATE, title) as context:
            column = self._measure(context, OPTIMIZED, model, samples)
            self.columns[OPTIMIZED] = column
            self.steps[-1].metrics.extend(column.metrics)

    def _measure(
        self, context: StepContext, name: str, model: WorkingModel, samples: Samples
    ) -> Column:
        reference = self.columns["baseline"].recorded
        return measure(
            context, name, model.predict, model.statistics(), samples, reference=reference
        )

    def _export(
        self, model: WorkingModel, samples: Samples
    ) -> tuple[list[Product], list[pb.Check]]:
        with self.stages.enter(pb.Stage.KIND_EXPORT, "Writing and timing models") as context:
            products, exported = write_outputs(
                context, model, self.spec.outputs, self.scratch / "artifacts"
            )
            products += write_analyses(self.analyses, self.scratch / "artifacts")
            optimized = self.columns[OPTIMIZED]
            optimized.onnx = exported.qdq
            if exported.qdq is not None:
                self.proof = self._prove(context, exported.qdq)
            self._time(context, samples)
        if not self.spec.outputs.verify:
            return products, []
        with self.stages.enter(pb.Stage.KIND_VERIFY, "Running what was written") as context:
            checks = verify(
                context.part(0.0, 0.7),
                exported,
                proof=self.proof,
                samples=samples,
                fp32=self.columns["baseline"],
                simulated=optimized,
            )
            self._measure_range(context.part(0.7, 1.0), model)
        return products, checks

    def _prove(self, context: StepContext, qdq: Path) -> pb.IntegerProof:
        """Find out where the file gives the same digits, and say where it does not."""
        proof = prove(qdq)
        if not is_proven(proof):
            context.warn("NOT_PROVEN_ON_EVERY_CPU", f"model.qdq.onnx: {describe(proof)}")
        return proof

    def _measure_range(self, context: StepContext, model: WorkingModel) -> None:
        """Find out what weights that suit every CPU cost, where the plan has them."""
        plan = self.spec.plan if self.goal is None else self.goal.plan
        deployed, fp32 = self.columns[OPTIMIZED].onnx, self.columns[FP32].onnx
        calibration = self.stages.calibration
        if deployed is None or fp32 is None or calibration is None or not can_measure(plan):
            return
        self.range_report = measure_range_cost(context, model, deployed, fp32, calibration)

    def _time(self, context: StepContext, samples: Samples) -> None:
        """Time every file, and say it where INT8 is slower than FP32."""
        time_columns(self.columns, samples, budget_seconds=LATENCY_SECONDS, check=context.check)
        if reason := why_not_faster(self.columns[FP32], self.columns[OPTIMIZED]):
            context.warn("INT8_NOT_FASTER", reason)

    def _publish(
        self,
        fetched: Fetched,
        products: list[Product],
        checks: list[pb.Check],
        model: WorkingModel,
    ) -> str:
        with self.stages.enter(pb.Stage.KIND_PUBLISH, "Uploading artifacts") as context:
            uri = self.assignment.attempt_uri
            most = context.part(0.0, 0.9)
            artifacts = publish_artifacts(most, self.session, uri, products)
            result = pb.JobResult(
                attempt=self.assignment.attempt,
                steps=self.steps,
                checks=checks,
                artifacts=artifacts,
                warnings=self.stages.warnings,
                provenance=provenance(self.spec, self.stages.device, fetched.sha256, self.cpus),
                metric=self._metric(),
                goal=self.goal,
                proof=self.proof,
                weight_range=self.range_report,
                stages=self.stages.reports(),
                # columns are named after the fields of JobResult
                **{name: column.report() for name, column in self.columns.items()},
            )
            if self.spec.outputs.report:
                page = render_report(
                    self.assignment.job, self.spec, result, self.analyses, model.encodings()
                )
                report = write_report(page, self.scratch / "artifacts")
                result.artifacts.extend(
                    publish_artifacts(context.part(0.9, 1.0), self.session, uri, [report])
                )
            manifest = pb.Manifest(
                format_version=MANIFEST_FORMAT_VERSION,
                job=self.assignment.job,
                attempt=self.assignment.attempt,
                resolved_spec=self.spec,
                result=result,
            )
            return publish_manifest(context, self.session, uri, manifest, self.scratch)

    def _metric(self) -> pb.Metric.ValueType:
        if self.spec.metric != pb.METRIC_UNSPECIFIED:
            return self.spec.metric
        found = {value.metric for value in self.columns["baseline"].metrics}
        return pb.METRIC_TOP1 if pb.METRIC_TOP1 in found else pb.METRIC_SQNR
