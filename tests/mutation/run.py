"""Run the mutation tester over the package's modules, one after the other, and record the results.

    python tests/mutation/run.py                 # every module of modules.toml
    python tests/mutation/run.py --sample 100    # at most 100 mutants of each
    python tests/mutation/run.py --only semantik_realtime/core/splice.py

A run that was interrupted goes on where it stopped; ``--again`` forgets what was run. It works on
copies, in ``build/mutation``. The results are written to ``results.json`` after every module, and
with them ``docs/mutation.md``. The dependency group ``mutation`` installs what it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mutants import (  # noqa: E402  (a script imports its neighbours)
    REPOSITORY,
    RESULTS,
    load_results,
    modules_in_scope,
    mutant_id,
    tests_of,
)
from report import write_page  # noqa: E402

SEED = 47
"""Of the samples: a sample of the same size is the same mutants while the module is the same."""

PROGRESS_SECONDS = 10

KINDS = {
    **dict.fromkeys((1, 3), "killed"),
    **dict.fromkeys((-24, 24, 36, 152, 255), "timeout"),
    0: "survived",
    **dict.fromkeys((5, 33), "untested"),
}
"""By the tester's exit code of a mutant: pytest's, those of signals, and some of its own."""


def copy_sources(folder: Path, module: str) -> set[str]:
    """Copy what the tester needs into ``folder``; return which of it has changed there.

    A file that is the same keeps its time, by which the tester knows what is new.
    """
    changed = set()
    for name in ("semantik_realtime", "tests", "docs/protocol.md"):
        source = REPOSITORY / name
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            target = folder / path.relative_to(REPOSITORY)
            if target.exists() and target.read_bytes() == path.read_bytes():
                continue
            changed.add(path.relative_to(REPOSITORY).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            # The tester copies a source once: it is told of a newer one by a missing copy.
            (folder / "mutants" / target.relative_to(folder)).unlink(missing_ok=True)
    settings = {
        "source_paths": ["semantik_realtime"],
        "only_mutate": [module],
        "also_copy": ["docs"],
        "pytest_add_cli_args": ["-p", "no:xdist", "--hypothesis-seed=0"],
        "pytest_add_cli_args_test_selection": tests_of(module),
        "timeout_multiplier": 4.0,
        "timeout_constant": 3.0,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        text + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    return changed


@contextlib.contextmanager
def settings_of(folder: Path) -> Iterator[None]:
    """Make ``folder`` the working directory, from which the tester reads its settings."""
    from mutmut.configuration import reset_config

    reset_config()
    with contextlib.chdir(folder):
        yield


def list_mutants(folder: Path, module: str) -> list[str]:
    """Return the names of all mutants of ``module``, in the tester's order."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    source = (folder / module).read_text(encoding="utf-8")
    with settings_of(folder):
        names = mutate_file_contents(module, source).mutant_names
    return [get_mutant_name(Path(module), name) for name in names]


def exit_codes(folder: Path, module: str) -> dict[str, int | None]:
    """Return the result of each mutant, None where it was not run."""
    try:
        meta = json.loads((folder / "mutants" / f"{module}.meta").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        # Not made yet, or just being written.
        return {}
    return dict(meta["exit_code_by_key"])


def show_diffs(folder: Path, module: str, names: list[str]) -> dict[str, str]:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    with settings_of(folder):
        return {name: get_diff_for_mutant(name, path=module) for name in names}


def run_tester(names: list[str], folder: Path, module: str) -> bool:
    """Run mutants and print the progress; the output goes to a file. Return whether it worked."""
    log = folder / "tester.log"
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    with log.open("wb") as output:
        tester = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    code = tester.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    codes = exit_codes(folder, module)
                    done = sum(code is not None for code in codes.values())
                    print(f"  {done} of {len(codes)} have a result", flush=True)
        finally:
            if tester.poll() is None:
                tester.terminate()
                tester.wait()
    if code:
        print(f"{module}: the tester ended with {code}: {log}", file=sys.stderr)
    return code == 0


def run_module(module: str, sample: int | None, again: bool) -> bool:
    """Run the mutants of one module and record them. Return False if the tests cannot run."""
    folder = REPOSITORY / "build" / "mutation" / module.removesuffix(".py").replace("/", ".")
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    changed = copy_sources(folder, module)
    # Also if this run is interrupted: the next one finds the file.
    again_file = folder / "run-survivors-again"
    if any(path.startswith("tests/") for path in changed):
        again_file.touch()
    everything = list_mutants(folder, module)
    if not everything:
        print(f"{module}: nothing to mutate", flush=True)
        return True
    chosen = everything
    if sample is not None and sample < len(everything):
        chosen = sorted(random.Random(SEED).sample(everything, sample))
    started = time.monotonic()
    done = {} if module in changed else exit_codes(folder, module)
    wanted = [
        name
        for name in chosen
        if (code := done.get(name)) is None
        or (again_file.exists() and KINDS.get(code) not in ("killed", "timeout"))
    ]
    if wanted:
        print(f"{module}: {len(wanted)} of {len(chosen)} mutants to run", flush=True)
        if not run_tester(wanted, folder, module):
            return False
    again_file.unlink(missing_ok=True)
    codes = exit_codes(folder, module)
    counts = {"killed": 0, "timeout": 0, "survived": 0, "untested": 0, "odd": 0}
    left = []
    for name in chosen:
        code = codes.get(name)
        if code is None:
            print(f"{module}: interrupted; the same command goes on", file=sys.stderr)
            return False
        kind = KINDS.get(code, "odd")
        counts[kind] += 1
        if kind in ("survived", "untested", "odd"):
            left.append(name)
    diffs = show_diffs(folder, module, left)
    results = load_results()
    results[module] = {
        "mutants": len(everything),
        "run": len(chosen),
        **counts,
        "survivors": sorted(
            (mutant_id(module, name, diffs[name]) for name in left),
            key=lambda entry: (entry["line"], entry["id"]),
        ),
    }
    text = json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    write_page()
    seconds = time.monotonic() - started
    print(f"\n{module}: {counts} of {len(chosen)} in {seconds:.0f} s", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="modules or folders, as paths from the root")
    parser.add_argument("--sample", type=int, help="at most so many mutants of each module")
    parser.add_argument("--again", action="store_true", help="run also what has been run")
    parser.add_argument("--page", action="store_true", help="only write docs/mutation.md")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return 0
    modules = [module for module in modules_in_scope() if tests_of(module)]
    if arguments.only:
        prefixes = tuple(arguments.only)
        modules = [module for module in modules if module.startswith(prefixes)]
    if not modules:
        parser.error("no module with tests in tests/mutation/modules.toml")
    failed = []
    for number, module in enumerate(modules, 1):
        print(f"[{number}/{len(modules)}] {module}", flush=True)
        if not run_module(module, arguments.sample, arguments.again):
            failed.append(module)
    if failed:
        print("not run: " + ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
