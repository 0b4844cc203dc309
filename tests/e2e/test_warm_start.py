"""A job that finds an idle worker begins at once."""

import lighten
from tests.benchmarks.bench_warm_start import seconds_to_first_stage, wait_for_warm_worker
from tests.support.lighten_server import LightenServer

# Ten times the target of the benchmark, for busy machines; without an idle worker it takes 5 to 20.
GENEROUS = 3.0


def test_a_warm_worker_begins_a_job_at_once(
    server: LightenServer, client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    wait_for_warm_worker(server)

    assert seconds_to_first_stage(client, onnx_spec) < GENEROUS
