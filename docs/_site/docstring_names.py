"""Docstrings on the site: their sections, and the names in single backticks.

A docstring writes `name` for an object of Python and ``text`` for anything else. The name may be
that of a parameter, of a member of the same class, of something in the same module, a public name
of the package, or a whole path. It becomes a link if the object is on the site. A name that
Python cannot find is a warning: the object was renamed, or it is text.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import logging

import semantik_realtime

logger = logging.getLogger(__name__)

SINGLE = re.compile(r"(?<![`:\w])`([^`\n]+)`(?![`_\w])")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_role("name", NameRole())
    app.config.default_role = "name"
    app.connect("autodoc-process-docstring", check_names)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("missing-reference", show_without_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class NameRole(PyXRefRole):
    """A name in a docstring; `check_names` has looked whether it exists."""

    def run(self) -> Any:
        """Make a reference of any kind of object, wherever on the site it is."""
        self.name = "py:obj"
        made, messages = super().run()
        for node in made:
            if isinstance(node, pending_xref):
                node["refspecific"] = node["name_is_checked"] = True
        return made, messages


def check_names(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: Sequence[str]
) -> None:
    """Warn of each name in a docstring that Python cannot find from there."""
    for line in lines:
        for found in SINGLE.findall(line):
            if not IDENTIFIER.fullmatch(found):
                logger.warning("in the docstring of %s: `%s` is no name", name, found)
            elif not exists(found, name, obj):
                logger.warning("in the docstring of %s: there is no `%s`", name, found)


def read_sections(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Turn ``Args:`` and ``Raises:`` into fields.

    Not in the docstring of an attribute: there napoleon takes what is before a colon for a type.
    """
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()


def exists(found: str, owner_name: str, owner: Any) -> bool:
    """Whether a name in the docstring of ``owner`` leads to an object."""
    first, *rest = found.split(".")
    module = sys.modules.get(getattr(owner, "__module__", None) or owner_name)
    scopes: list[Any] = [owner, module, builtins]
    # The class whose member this is, and the module of that class.
    outer = imported(owner_name.rpartition(".")[0])
    scopes += [outer, sys.modules.get(getattr(outer, "__module__", "")), semantik_realtime]
    for scope in scopes:
        if scope is not None and (
            leads_on(scope, [first, *rest])
            or (not rest and first in getattr(scope, "__annotations__", {}))
        ):
            return True
    return (not rest and first in parameters(owner)) or imported(found) is not None


def parameters(owner: Any) -> Sequence[str]:
    """Names of the parameters of a function or class."""
    try:
        return list(inspect.signature(owner).parameters)
    except (TypeError, ValueError):
        return []


def leads_on(scope: Any, names: Sequence[str]) -> bool:
    """Whether ``names`` can be read from ``scope``, one after the other."""
    for name in names:
        try:
            scope = getattr(scope, name)
        except AttributeError:
            return False
    return True


def imported(path: str) -> Any:
    """The module or object at a whole path; None if there is none."""
    module, _, rest = path, "", ""
    while module:
        try:
            found = importlib.import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}".rstrip(".")
            continue
        names = rest.split(".") if rest else []
        if not leads_on(found, names):
            return None
        for name in names:
            found = getattr(found, name)
        return found
    return None


def show_without_link(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Show a name that exists but is on no page as it is."""
    if node.get("refdomain") != "py":
        return None
    if node.get("name_is_checked") or in_signature(node):
        # mypy checks what is in a signature.
        return content
    target = node["reftarget"]
    if hasattr(builtins, target) or imported(target) is not None:
        return content
    return None


def in_signature(node: nodes.Element) -> bool:
    """Whether a reference is part of a signature."""
    parent = node.parent
    while parent is not None:
        if isinstance(parent, desc_signature):
            return True
        parent = parent.parent
    return False
