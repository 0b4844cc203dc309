"""The proof of a QDQ file's integer arithmetic."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lighten import _proof
from lighten import v1 as pb

# The result has up to 100; the report shows them all.
_MOST_WEIGHTS = 10


def proof_view(proof: pb.IntegerProof) -> RenderableType:
    """Return a line for x86 and for ARM, the weights that are not proven, and what is not known."""
    parts = [summary(proof)]
    if proof.details:
        parts.append(_unproven(proof))
    if proof.not_tested:
        parts.append(Text(f"  not tested: {'; '.join(proof.not_tested)}", style="dim"))
    return Group(*parts)


def summary(proof: pb.IntegerProof) -> RenderableType:
    """Return how much is proven, with a line for x86 and one for ARM."""
    findings = Table.grid(padding=(0, 1))
    for half in _proof.halves(proof):
        mark = ("✔", "green") if half.proven else ("!", "yellow")
        findings.add_row(Text(*mark), Text(half.cpus), Text(half.finding))
    title = Text.assemble(("Integer arithmetic: ", "bold"), _proof.counts(proof))
    return Group(title, findings)


def _unproven(proof: pb.IntegerProof) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    shown = proof.details[:_MOST_WEIGHTS]
    for item in shown:
        verdicts = ", ".join(
            f"{cpus} {_proof.verdict_name(verdict)}"
            for cpus, verdict in (("x86", item.x86), ("ARM", item.arm))
        )
        table.add_row("", Text(item.layer), item.op, verdicts, Text(item.reason, style="dim"))
    if more := proof.unproven - len(shown):
        table.add_row("", f"and {more} more")
    return table
