"""The results as Markdown tables."""

from collections.abc import Mapping
from statistics import median

from tests.benchmarks.cpus.files import FILES, File
from tests.benchmarks.cpus.judged import Estimate, Found
from tests.benchmarks.cpus.measuring import FP32, Result

_COLUMNS = (
    "SQNR dB",
    "agreement",
    "dB of the first",
    "without VNNI",
    "agreement there",
    "as its twin",
    "CPU time ÷ FP32",
)


class Row:
    """The figures of one file; ``saturating``: this machine's CPU is one without VNNI."""

    def __init__(self, result: Result, file: File, *, saturating: bool) -> None:
        self.file = file
        self._result = result
        self._exact_path = file.twin if saturating and file.twin else file.path

    @property
    def exact(self) -> Found:
        """In exact integer arithmetic, on all samples."""
        return self._result.here[self._exact_path]

    @property
    def without(self) -> Found:
        """On the CPU without VNNI, on the first samples."""
        return self._result.without[self.file.path]

    @property
    def same_exact(self) -> Found:
        """In exact integer arithmetic, on the same samples as `without`."""
        return self.exact.first(self.without.count)

    def as_twin(self) -> str:
        """Return on how many samples the file's outputs are its twin's, here and without VNNI."""
        if self.file.twin is None:
            return ""
        counts = []
        for found in (self._result.here, self._result.without):
            if self.file.twin not in found:
                return "no twin"
            own = found[self.file.path]
            equal = own.equal(found[self.file.twin])
            counts.append("all" if equal == own.count else f"{equal} of {own.count}")
        return ", ".join(counts)

    def time_ratio(self, other: str = FP32) -> float:
        """Return the median over rounds of this file's CPU time relative to another one's."""
        on_openvino = self.file.on_openvino
        seconds = self._result.openvino_seconds if on_openvino else self._result.seconds
        pairs = zip(seconds[self.file.path], seconds[other], strict=True)
        return median(own / theirs for own, theirs in pairs)


Rows = Mapping[File, Row]


def rows_of(result: Result, *, saturating: bool) -> Rows:
    """Return the rows of the files that there are."""
    made = [file for file in FILES if file.path in result.here]
    return {file: Row(result, file, saturating=saturating) for file in made}


def print_details(result: Result, rows: Rows) -> None:
    """Print all figures of one model."""
    one = next(iter(rows.values()))
    print(
        f"\n**{result.model.title}**: {result.model.data}, n = {one.exact.count}; without VNNI the "
        f"first {one.without.count}\n\n| | {' | '.join(_COLUMNS)} |\n|{' --- |' * 8}"
    )
    for row in rows.values():
        print(f"| {row.file.title} | {' | '.join(_cells(row, scores=result.model.scores))} |")


def _cells(row: Row, *, scores: bool) -> list[str]:
    return [
        _decibels(row.exact.sqnr()),
        _share(row.exact.agreement()) if scores else "",
        _decibels(row.same_exact.sqnr()),
        _decibels(row.without.sqnr()),
        _share(row.without.agreement()) if scores else "",
        row.as_twin(),
        f"{row.time_ratio():.2f}",
    ]


def _decibels(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} ± {estimate.error:.1f}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.error:.3f}"


def print_summary(models: Mapping[str, tuple[Result, Rows]]) -> None:
    """Print dB and agreement of every model and file in exact arithmetic; for files that lose
    without VNNI how many dB, on the samples that were judged there."""
    print(f"\n| | {' | '.join(file.title for file in FILES)} |\n|{' --- |' * (1 + len(FILES))}")
    for result, rows in models.values():
        cells = [
            _brief(rows[file], scores=result.model.scores) if file in rows else "failed"
            for file in FILES
        ]
        print(f"| {result.model.title} | {' | '.join(cells)} |")


def _brief(row: Row, *, scores: bool) -> str:
    agreement = f" {row.exact.agreement().value:.2f}".replace("0.", ".") if scores else ""
    change = row.without.sqnr_over(row.same_exact).value
    lost = f" ({change:+.1f})" if abs(change) >= 0.05 else ""
    return f"{row.exact.sqnr().value:.1f}{agreement}{lost}"
