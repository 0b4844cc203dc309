"""The HTML report: what it shows, what it leaves out, and that nothing in it can run."""

from html.parser import HTMLParser

import pytest

from lighten import v1 as pb
from lighten_service.worker.report import charts, render_report, words
from tests.support import report_sample

HOSTILE = """</title><script>alert("x")</script><img src=x onerror='alert(1)'>{{ 7 * 7 }}"""
# Elements that HTML closes by itself.
_VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})


class Page(HTMLParser):
    """Collects elements, attributes and headings, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def full() -> str:
    return render_report(
        report_sample.JOB,
        report_sample.spec(),
        report_sample.result(),
        report_sample.analyses(),
        report_sample.encodings(),
    )


def bare(result: pb.JobResult) -> str:
    return render_report("projects/p/jobs/j", pb.JobSpec(), result, {}, ())


def test_everything_there_is_to_show_is_shown_once_and_in_order() -> None:
    assert Page(full()).headings == [
        "Goal met",
        "Warnings",
        "What was asked",
        "Comparison",
        "Trials",
        "Steps",
        "Where quantization loses",
        "Ranges",
        "Bits of each tensor",
        "Integer arithmetic",
        "Checks",
        "Artifacts",
        "Provenance",
    ]


def test_sections_without_data_are_left_out() -> None:
    page = Page(bare(pb.JobResult(optimized=pb.ModelReport(parameters=3))))
    assert page.headings == ["Not compared", "What was asked", "Comparison", "Provenance"]
    assert not [tag for tag, _ in page.elements if tag in {"svg", "figure", "ul"}]


def test_figures_stand_with_samples_and_standard_errors() -> None:
    text = full()
    for figure in (
        "63.4 % ± 4.6",
        "n = 112",
        "17.9 dB",
        "1.8\N{MULTIPLICATION SIGN} faster",
        "53 of 53",
    ):
        assert figure in text
    assert "needs a scale for each channel of the weights" in text
    assert "features.1.conv.0.0" in text


def test_a_slower_model_is_called_slower() -> None:
    result = report_sample.result()
    result.optimized.latency.median_seconds = 0.02
    text = render_report(report_sample.JOB, report_sample.spec(), result, {}, ())
    assert "One inference is 1.6\N{MULTIPLICATION SIGN} slower than FP32 here" in text


def test_the_proof_names_what_is_not_proven_and_what_is_not_tested() -> None:
    text = full()
    for words_of_it in (
        "34 of 53 weights bounded, 17 exact in onnxruntime 1.31.1, 2 not proven",
        "<strong>x86</strong> saturates without VNNI in 1 of 53 weights, worst in features.2",
        "<strong>ARM</strong> can overflow in 2 of 53 weights, worst in features.1.conv.0.0",
        "pairs of up to 201 in 5 of 24 channels",
        "<small>channels 0, 3, 4, 11, 12</small>",
        "Not tested: x86 with AVX-512 and without VNNI; runtimes other than ONNX Runtime on",
    ):
        assert words_of_it in text
    assert "<summary>What is not proven</summary>" in text

    result = report_sample.result()
    result.proof.unproven, result.proof.details[1].channel_count = 140, 6
    assert "<small>channels 0, 3, 4, 11, 12, ...</small>" in _render(result)
    assert "<summary>What is not proven: the first 2</summary>" in _render(result)
    result.proof.CopyFrom(
        pb.IntegerProof(
            x86=pb.INTEGER_VERDICT_BOUNDED, arm=pb.INTEGER_VERDICT_BOUNDED, weights=2, bounded=2
        )
    )
    text = _render(result)
    assert "2 of 2 weights bounded." in text
    assert "is exact with and without VNNI" in text
    assert "What is not proven" not in text


def test_every_cpu_that_the_result_comes_from_is_named() -> None:
    result = report_sample.result()
    text = _render(result)
    assert "<dt>CPU</dt><dd>AMD EPYC 7763, whose INT8 kernels saturate" in text
    assert "avx, avx2, f16c, fma3" in text
    result.provenance.cpus.add(attempt=2, model="AMD EPYC 9654", instruction_sets=["avx512_vnni"])
    text = _render(result)
    assert "<dt>CPU</dt><dd>attempt 1: AMD EPYC 7763" in text
    assert "<dt>CPU</dt><dd>attempt 2: AMD EPYC 9654 <small>avx512_vnni" in text


def test_a_failed_check_and_a_missed_goal_are_said_first() -> None:
    result = report_sample.result()
    result.goal.met = False
    assert Page(_render(result)).headings[0] == "Goal missed. Some loss against FP32"
    result.checks[0].passed = False
    assert Page(_render(result)).headings[0].startswith("1 check failed. ")


def test_what_callers_name_is_escaped_everywhere() -> None:
    spec, result = report_sample.spec(), report_sample.result()
    spec.display_name = HOSTILE
    spec.model.class_names.append(HOSTILE)
    spec.model.inputs[0].name = HOSTILE
    spec.labels["a"] = HOSTILE
    result.steps[0].summary = result.steps[0].step.id = HOSTILE
    result.checks[0].detail = result.warnings[0].message = HOSTILE
    result.goal.trials[0].failure = result.goal.explanation[0] = HOSTILE
    result.optimized.outputs.add(output=HOSTILE, sqnr_db=3)
    result.provenance.input_sha256[HOSTILE] = "0"
    result.provenance.cpus[0].model = HOSTILE
    result.proof.details[0].layer = result.proof.details[1].reason = HOSTILE
    found = report_sample.analyses()
    found["sensitivity"]["layers"][0]["layer"] = HOSTILE
    found["equalize"]["layers"][0]["layer"] = HOSTILE
    text = render_report(HOSTILE, spec, result, found, report_sample.encodings())

    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag in {"script", "img", "iframe", "object"}]
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("&lt;script&gt;") > 10


def test_the_page_loads_nothing_and_forbids_scripts() -> None:
    text = full()
    page = Page(text)
    policies = [
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe"}
        assert not {"src", "href", "srcset"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text


def test_charts_say_what_they_show_and_ids_are_unique() -> None:
    page = Page(full())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert drawn
    for attributes in drawn:
        named = (attributes.get("aria-labelledby") or "").split()
        assert attributes.get("aria-hidden") == "true" or (named and set(named) <= set(ids))


def test_the_same_result_gives_the_same_bytes() -> None:
    assert full() == full()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 60.0, [0, 20, 40, 60]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.0, [0, 1]),
        (0.0, 0.0031, [0, 0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_axes_have_round_ticks_that_hold_the_values(low, high, ticks) -> None:
    scale = charts.Scale(low, high)
    assert scale.ticks == pytest.approx(ticks)
    assert scale.low <= low
    assert scale.high >= high


def test_values_outside_of_an_axis_stand_on_its_edge() -> None:
    scale = charts.Scale(0.0, 60.0)
    assert (scale.y(118.0), scale.y(-4.0)) == (0.0, charts.HEIGHT)


def test_types_are_named_as_people_do() -> None:
    config = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4, activations=pb.DATA_TYPE_INT16)
    assert words.plan_types(config) == "W4A16"
    config.activations = pb.DATA_TYPE_INT4
    assert words.plan_types(config) == "INT4"
    config.activations = pb.DATA_TYPE_FLOAT8_E4M3
    assert words.plan_types(config) == "W4AFP8"


def _render(result: pb.JobResult) -> str:
    return render_report(report_sample.JOB, report_sample.spec(), result, {}, ())
