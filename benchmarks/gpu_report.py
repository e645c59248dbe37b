"""Join what ``benchmarks/gpu.sh`` measured: ``python benchmarks/gpu_report.py PARTS OUT``.

PARTS/NAME.out       what a part printed; its last line is JSON, but for the tests
PARTS/NAME.failed    its exit code, if that was not 0: a missed goal, or an error
PARTS/NAME.skipped   why it was not run
OUT/gpu.json         all figures
OUT/gpu.md           their tables
"""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> None:
    """Join the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="folder of what the parts printed")
    parser.add_argument("out", type=Path, help="folder for the figures and tables")
    options = parser.parse_args()
    parts, out = options.parts, options.out
    results = {path.stem: _result(path) for path in sorted(parts.glob("*.out"))}
    problems = {path.stem: path.read_text().strip() for path in sorted(parts.glob("*.skipped"))}
    problems |= {path.stem: path.read_text().strip() for path in sorted(parts.glob("*.failed"))}
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps({"said": problems, **results}, indent=1) + "\n")
    (out / "gpu.md").write_text("\n".join(_lines(results, problems)) + "\n")
    sys.stdout.write(f"{out / 'gpu.md'}\n")


def _result(path: Path) -> Any:
    """The JSON that a part ended with, else its last line."""
    last = path.read_text().strip().rpartition("\n")[2]
    try:
        return json.loads(last)
    except ValueError:
        return last


def _lines(results: dict[str, Any], problems: dict[str, str]) -> Iterator[str]:
    step, kernels = (results[name] if isinstance(results.get(name), dict) else {} for name in ("step", "kernels"))
    device, machine = step.get("device", "no device"), step.get("machine", {})
    yield "# On a GPU"
    yield ""
    yield f"`benchmarks/gpu.sh`, {datetime.now(UTC):%Y-%m-%d}, {device}, {machine}"
    yield ""
    yield f"Tests: {results.get('tests', 'not run')}"
    yield from (f"* {name}: {problem}" for name, problem in problems.items())
    if step:
        yield from _steps(step)
        yield from (f"Out of memory: {name}." for name in step.get("out_of_memory", []))
    if isinstance(results.get("variants"), dict):
        yield from _variants(results["variants"])
    for family in ("window_attention", "depthwise", "cluster_attention"):
        if family in kernels:
            yield from _kernels(family, kernels[family])
    if isinstance(results.get("trainer"), dict):
        trainer = results["trainer"]
        bare_ms = 1000 * trainer["seconds_bare"]
        yield ""
        yield f"The trainer adds {trainer['milliseconds_added']:.2f} ms to a bare step of {bare_ms:.1f} ms."


def _steps(step: dict[str, Any]) -> Iterator[str]:
    peak, copied = step.get("peak_flops_per_s", 0) / 1e12, step.get("peak_bytes_per_s", 0) / 1e12
    yield ""
    yield f"## Whole steps, {step['micro_batch']} images; measured peak {peak:.0f} TFLOP/s, {copied:.2f} TB/s"
    yield ""
    yield "| case | images/s | faster than dense | peak memory of dense's | of the peak FLOP/s |"
    yield "|---|---|---|---|---|"
    for name, case in step["cases"].items():
        memory, flops = case.get("memory_ratio", float("nan")), case.get("flops_share", float("nan"))
        yield f"| {name} | {case['images_per_s']:.0f} | {case['speedup']:.2f}x | {memory:.1%} | {flops:.1%} |"


def _variants(results: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## Ways to run the step of {results['case']}, micro-batches of {results['micro_batch']} images"
    yield ""
    yield "| way | images/s | of the first |"
    yield "|---|---|---|"
    for name, way in results["ways"].items():
        yield f"| {name} | {way['images_per_s']:.0f} | {way['of_the_first']:.2f}x |"


def _kernels(family: str, results: dict[str, Any]) -> Iterator[str]:
    cases: dict[str, Any] = {name: case.get("ms", case) for name, case in results["cases"].items()}
    ways = list(dict.fromkeys(way for times in cases.values() for way in times))
    yield ""
    yield f"## {family}, forward and backward, ms"
    yield ""
    yield f"| case | {' | '.join(ways)} |"
    yield f"|---|{'---|' * len(ways)}"
    for name, times in cases.items():
        figures = [f"{times[way]['forward_backward']:.3f}" if way in times else "" for way in ways]
        yield f"| {name} | {' | '.join(figures)} |"


if __name__ == "__main__":
    main()
