"""Write docs/mutation.md from results.json and explained.toml."""

from __future__ import annotations

from typing import Any

from mutants import REPOSITORY, load_explained, load_results, modules_in_scope

PAGE = REPOSITORY / "docs" / "mutation.md"

HEAD = """\
# Mutation score

<!-- Written by tests/mutation/run.py from results.json and explained.toml. Do not edit. -->

A mutation tester changes one expression of the code at a time and runs the tests. A changed
program (a mutant) that no test fails on *survives*: either a test is missing, or the change makes
no difference that anybody can see. This page is the record of the last run of each module over
`core`, the hub, `emitter` and `backends`, judged by its fast tests only, which
`tests/mutation/modules.toml` lists. Tests with servers, which judge many of the same lines, do not
run, so a survivor here may well fail one of those.

```console
$ tox -e mutation -- --only semantik_realtime/core/splice.py
$ tox -e mutation -- --sample 40
```

A run that is interrupted goes on where it stopped, and after a change of the tests it runs again
only what has survived. Each Monday the workflow `mutation` runs at most 60 mutants of each module
and keeps the page and the results that it wrote. The reasons of explained survivors are kept in
`tests/mutation/explained.toml`; a test holds them to the code. A page of the decisions says
[why this tester, and what it does not see](adr/0047-mutants-of-functions.md).

"Killed" includes mutants that ran into the time limit. The score is killed of run.
"""


def write_page() -> None:
    PAGE.write_text(make_page(), encoding="utf-8")


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def make_page() -> str:
    results = load_results()
    explained = load_explained()
    parts = [HEAD, "## Score\n"]
    parts += ["| module | run | killed | score | explained | open |", "|---|---|---|---|---|---|"]
    all_run = all_killed = all_explained = all_open = 0
    not_run = []
    for module in modules_in_scope():
        if (result := results.get(module)) is None:
            not_run.append(module)
            continue
        killed = result["killed"] + result["timeout"]
        run = result["run"]
        reasons = sum(entry["id"] in explained for entry in result["survivors"])
        still = len(result["survivors"]) - reasons
        whole = f"{run} (all)" if run == result["mutants"] else f"{run} of {result['mutants']}"
        parts.append(
            f"| `{module}` | {whole} | {killed} | {percent(killed, run)} | {reasons} | {still} |"
        )
        all_run += run
        all_killed += killed
        all_explained += reasons
        all_open += still
    parts.append(
        f"| together | {all_run} | {all_killed} | {percent(all_killed, all_run)} "
        f"| {all_explained} | {all_open} |\n"
    )
    parts.append(
        'Where it says "n of m", a sample was run: the first n of a shuffle with a fixed seed.\n'
    )
    if not_run:
        names = ", ".join(f"`{module}`" for module in not_run)
        parts.append(f"Not run ({len(not_run)} modules): {names}.\n")
    parts += section("Explained survivors", results, lambda key: explained.get(key))
    parts += section("Open survivors", results, lambda key: None if key in explained else "")
    return "\n".join(parts)


def section(title: str, results: dict[str, Any], reason_of: Any) -> list[str]:
    """Return a heading and the survivors for which ``reason_of`` their id is not None."""
    parts = [f"## {title}\n"]
    for module, result in results.items():
        for entry in result["survivors"]:
            reason = reason_of(entry["id"])
            if reason is None:
                continue
            function = entry["id"].split(":")[1]
            text = f"`{module}:{entry['line']}` `{function}`"
            parts.append(f"{text}: {reason}\n" if reason else f"{text}\n")
            parts.append("```diff")
            parts += [f"-{line}" for line in entry["removed"]]
            parts += [f"+{line}" for line in entry["added"]]
            parts.append("```\n")
    if len(parts) == 1:
        parts.append("None.\n")
    return parts
