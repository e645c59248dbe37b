"""Is anything that users bring taken for something else, lost, or waited for without end? Each input, tried.

    python benchmarks/drills/user_inputs.py --out runs/user_inputs [--only trees tars] [--workers 2]

Makes each input (tiny, generated), runs the real command on it, and checks result or message. The inputs lie in
``benchmarks/drills/trials/inputs``, a list of cases in each file. Prints a line for each case and, last, one line of
JSON; exit code 1 where one went wrong.
"""

import argparse
import importlib
import json
import pkgutil
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import benchmarks.drills.trials.inputs
from benchmarks.drills.trials.case import Case, try_case

KINDS = sorted(module.name for module in pkgutil.iter_modules(benchmarks.drills.trials.inputs.__path__))


def main() -> None:
    """Try the kinds of input that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for inputs and outputs; emptied first")
    parser.add_argument("--only", nargs="+", default=KINDS, metavar="KIND[.NAME]", help="kinds, or cases of them")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    cases = [(kind, case) for kind in KINDS for case in cases_of(kind) if asked_for(kind, case, options.only)]
    start = time.monotonic()
    with ThreadPoolExecutor(options.workers) as pool:
        faults = list(pool.map(lambda entry: tried(options.out.resolve(), *entry), cases))
    counts = {kind: sum(entry[0] == kind for entry in cases) for kind in KINDS}
    wrong = [f"{kind}.{case.name}" for (kind, case), fault in zip(cases, faults, strict=True) if fault]
    result = {"cases": len(cases), "wrong": wrong, "kinds": counts, "seconds": round(time.monotonic() - start)}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.exit(1 if wrong else 0)


def cases_of(kind: str) -> list[Case]:
    """List the cases of a kind."""
    return importlib.import_module(f"benchmarks.drills.trials.inputs.{kind}").CASES


def asked_for(kind: str, case: Case, names: list[str]) -> bool:
    """Whether the command line names a case or its kind."""
    return kind in names or f"{kind}.{case.name}" in names


def tried(out: Path, kind: str, case: Case) -> str | None:
    """Run a case, and say at once what went wrong."""
    fault = try_case(case, out / kind / case.name)
    sys.stdout.write(f"{'WRONG' if fault else 'ok   '} {kind}.{case.name}{f': {fault}' if fault else ''}\n")
    sys.stdout.flush()
    return fault


if __name__ == "__main__":
    main()
