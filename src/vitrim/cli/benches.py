"""``vitrim bench``: the table of methods, and beneath it the published protocols, each loaded when it is used."""

from __future__ import annotations

from cyclopts import App

from vitrim.cli.bench import bench

benches = App(name="bench", help_format="plaintext")
benches.default(bench)
benches.command(
    "vitrim.cli.bench_throughput:throughput",
    name="throughput",
    help="Throughput of whole models over batch sizes and keep rates, by the published protocol.",
)
benches.command(
    "vitrim.cli.bench_clustering:clustering",
    name="clustering",
    help="Clustering libraries side by side over batch sizes, tokens and linkages, by the published protocol.",
)
