"""The record of the mutation tester is about the code that is there."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "mutation"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mutants():
    yield load("mutants")
    del sys.modules["mutants"]


@pytest.fixture(scope="module")
def report(mutants):
    yield load("report")
    del sys.modules["report"]


def survivors(results):
    return {entry["id"]: entry for result in results.values() for entry in result["survivors"]}


def test_each_explanation_is_of_lines_that_are_still_in_the_function(mutants):
    gone = []
    listed = survivors(mutants.load_results())
    for key in mutants.load_explained():
        entry = listed[key]
        module, function, _ = key.split(":")
        is_there = (mutants.REPOSITORY / module).exists()
        found = mutants.function_lines(module, function) if is_there else None
        lines = [line.strip() for line in found[1]] if found else []
        if not all(line in lines for line in entry["removed"]):
            gone.append(key)
    command = "tox -e mutation -- --only MODULE"
    assert not gone, f"the explained code has changed; run again: {command}"


def test_each_explanation_is_of_a_survivor_and_has_a_reason(mutants):
    explained = mutants.load_explained()
    unknown = set(explained) - set(survivors(mutants.load_results()))
    assert not unknown, "explained.toml explains what is no survivor (any more)"
    assert all(len(reason) > 20 for reason in explained.values())


def test_the_page_is_what_the_results_say(report):
    assert report.PAGE.read_text(encoding="utf-8") == report.make_page(), (
        "run: python tests/mutation/run.py --page"
    )


def test_the_tests_that_judge_a_module_exist_and_so_does_the_module(mutants):
    table = mutants.tomllib.loads((FOLDER / "modules.toml").read_text(encoding="utf-8"))
    named = {
        f"semantik_realtime/{folder.replace('.', '/')}/{name}.py"
        for folder, names in table.items()
        for name in names
    }
    assert named <= set(mutants.modules_in_scope())
    for module in named:
        for path in mutants.tests_of(module):
            assert (mutants.REPOSITORY / path).is_file(), path


DIFF = """\
--- a
+++ a
@@ -1,3 +1,3 @@
 def last(items):
-    return items[-1]
+    return items[+1]
"""


def test_an_id_depends_on_the_change_and_not_on_its_place(mutants, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "REPOSITORY", tmp_path)
    source = "class Box:\n    def last(items):\n        return items[-1]\n"
    (tmp_path / "box.py").write_text(source, encoding="utf-8")
    one = mutants.mutant_id("box.py", "box.xǁBoxǁlast__mutmut_3", DIFF)
    (tmp_path / "box.py").write_text("# New.\n\n" + source, encoding="utf-8")
    two = mutants.mutant_id("box.py", "box.xǁBoxǁlast__mutmut_9", DIFF)
    assert one["id"] == two["id"]
    assert one["id"].startswith("box.py:Box.last:")
    assert (one["line"], two["line"]) == (3, 5)
    other = mutants.mutant_id("box.py", "box.xǁBoxǁlast__mutmut_3", DIFF.replace("+1]", "0]"))
    assert other["id"] != one["id"]
