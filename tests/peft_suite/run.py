"""Runs PEFT's own tests, unchanged, without and with `accelerate`, and compares test by test.

The exit status is 1 if a test passes only without. README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent / "support"
sys.path.insert(0, str(SUPPORT))

from peft_suite_comparison import FAULT, GAIN, compare, counts, needs_network, table  # noqa: E402
from peft_suite_models import write_models  # noqa: E402
from peft_suite_records import left, read  # noqa: E402
from peft_suite_sources import prepare  # noqa: E402

PACKAGES = ("gralora", "peft", "transformers", "torch", "accelerate", "datasets", "diffusers")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="such as test_mixed.py; default: all with LoRA")
    parser.add_argument("-k", dest="keyword", help="as of pytest: only tests that match")
    parser.add_argument("--sources", type=Path, help="unpacked source distribution of PEFT")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "gralora" / "peft-suite"
    )
    parser.add_argument("--records", type=Path, required=True, help="folder for the outcomes")
    parser.add_argument("--json", type=Path, help="file for versions and counts")
    parser.add_argument("--at-most", type=int, default=500, help="tests in one process")
    parser.add_argument("--seconds", type=int, default=120, help="time of one test")
    parser.add_argument("--gpu", action="store_true", help="let the tests see the GPUs")
    return parser.parse_args(arguments)


def _files(tests: Path, named: Sequence[str]) -> list[str]:
    """The files to run: those named, or all whose tests can make a LoRA or GraLoRA layer."""
    if named:
        return list(named)
    return sorted(
        path.name
        for path in tests.glob("test_*.py")
        if re.search(r"\b(LoraConfig|GraloraConfig)\b", path.read_text(encoding="utf-8"))
    )


def _environment(options: argparse.Namespace) -> dict[str, str]:
    changes = {
        "PYTHONPATH": str(SUPPORT),
        "HF_HOME": str(options.cache / "hub-home"),
        "HF_HUB_CACHE": str(options.cache / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    if not options.gpu:
        changes["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **changes}


def _run(root: Path, file: str, records: Path, options: argparse.Namespace, *more: str) -> None:
    """Run the tests of a file that have no record yet, so many to a process, until none is left."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--no-header", "--tb=no", "-rN"]
    command += ["-p", "no:cacheprovider", "-p", "peft_suite_plugin", "--rootdir", str(root)]
    # The settings are PEFT's, but for the coverage it measures, and its making errors of the
    # warnings of transformers, whose later versions would fail the tests before they begin.
    command += ["-c", str(root / "pyproject.toml"), "--override-ini=addopts="]
    command += ["-W", "default::FutureWarning", "-W", "default::DeprecationWarning"]
    command += ["--import-mode=prepend", str(root / "tests" / file), "--records", str(records)]
    command += [f"--at-most={options.at_most}", f"--seconds={options.seconds}", *more]
    if options.keyword:
        command += ["-k", options.keyword]
    log = records.with_suffix(".log")
    while True:
        before = len(read(records))
        with log.open("a", encoding="utf-8") as output:
            ended = subprocess.run(
                command, cwd=root, env=_environment(options), stdout=output, stderr=output
            )
        crashed = ended.returncode not in (0, 1, 5)
        if len(read(records)) == before:
            if crashed:
                print(f"{file}: pytest ended with status {ended.returncode}, see {log}", flush=True)
            return
        if not crashed and not left(records):
            return


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, print; return the exit status."""
    options = _options(arguments)
    options.cache = options.cache.resolve()
    root = prepare(options.cache, options.sources)
    write_models(options.cache / "hub")
    options.records = options.records.resolve()
    options.records.mkdir(parents=True, exist_ok=True)
    versions = _versions()
    print(", ".join(f"{name} {number}" for name, number in versions.items()), flush=True)
    verdicts = []
    for file in _files(root / "tests", options.files):
        stem = options.records / Path(file).stem
        plain, accelerated = Path(f"{stem}.plain.jsonl"), Path(f"{stem}.accelerated.jsonl")
        _run(root, file, plain, options)
        skip = Path(f"{stem}.network.txt")
        skip.write_text(
            "".join(f"{record.test}\n" for record in read(plain) if needs_network(record)),
            encoding="utf-8",
        )
        _run(root, file, accelerated, options, "--accelerate", f"--skip-ids={skip}")
        found = compare(read(plain), read(accelerated))
        if found:
            print(table(found).splitlines()[1], flush=True)
        verdicts += found
    print(f"\n{table(verdicts)}")
    if options.json:
        results = {"versions": versions, "keyword": options.keyword, "files": counts(verdicts)}
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for kind in (FAULT, GAIN):
        for verdict in verdicts:
            if verdict.kind == kind:
                after = verdict.accelerated
                record = after if kind == FAULT and after else verdict.plain
                print(f"\n{kind}: {verdict.plain.test}\n  {record.outcome}: {record.message}")
    faults = sum(verdict.kind == FAULT for verdict in verdicts)
    fused = sum(bool(verdict.accelerated and verdict.accelerated.calls) for verdict in verdicts)
    if not fused:
        print("\nno test ran a fused layer")
    return 1 if faults or not fused else 0


if __name__ == "__main__":
    sys.exit(main())
