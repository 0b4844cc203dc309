"""What `lighten check` shows: the proof of one file, and the way out where there is none."""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lighten import _proof
from lighten import v1 as pb
from lighten.cli.render.proof import summary

_NOT_PROVEN = (pb.INTEGER_VERDICT_SATURATES, pb.INTEGER_VERDICT_NOT_PROVABLE)


def check_view(
    name: str, proof: pb.IntegerProof, twin: pb.IntegerProof | None = None
) -> RenderableType:
    """Return the verdict on a file. ``twin``: what is proven of its twin, where it was written."""
    proven = _proof.is_proven(proof)
    verdict = ("proven on every CPU", "bold green") if proven else ("not proven", "bold yellow")
    parts: list[RenderableType] = [Text.assemble((name, "bold"), ": ", verdict), summary(proof)]
    if proof.details:
        parts.append(_unproven(proof))
    if proof.not_tested:
        parts.append(Text(f"Not tested: {'; '.join(proof.not_tested)}.", style="dim"))
    if not proven:
        parts.append(Text.assemble(("Next: ", "bold"), _way_out(twin)))
    return Group(*parts)


def twin_view(path: Path, proof: pb.IntegerProof) -> RenderableType:
    """Return where the twin lies, and what is proven of it."""
    return Text.assemble(("Twin: ", "bold"), f"{path}, {_proof.describe(proof)}")


def _unproven(proof: pb.IntegerProof) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for name in ("operator", "x86", "ARM", "why"):
        table.add_column(name)
    for item in proof.details:
        verdicts = (_verdict(verdict) for verdict in (item.x86, item.arm))
        table.add_row(Text(item.layer), item.op, *verdicts, Text(item.reason))
    if more := proof.unproven - len(proof.details):
        table.add_row(f"and {more} more")
    return table


def _verdict(verdict: pb.IntegerVerdict.ValueType) -> Text:
    style = "yellow" if verdict in _NOT_PROVEN else "dim"
    return Text(_proof.verdict_name(verdict), style=style)


def _way_out(twin: pb.IntegerProof | None) -> str:
    lighten = "quantize the float model with Lighten and `weight_range: EVERY_CPU`"
    if twin is None:
        return f"{lighten}; or write this file with UINT8 weights: --twin FILE."
    if _proof.is_proven(twin):
        return f"use the twin; or {lighten}, which costs no time without VNNI."
    return f"{lighten}."
