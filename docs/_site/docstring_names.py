"""Docstrings on the site: their sections, and the names in single backticks.

A docstring writes `name` for an object of Python and ``text`` for anything else. The name may be
that of a parameter, of a member of the same class, of something in the same module (in a module's
docstring also a member of its classes), a public name of the package, or a whole path. It becomes
a link if the object is on the site. A name that Python cannot find is a warning: the object was
renamed, or it is text.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import logging

import semantik_realtime

logger = logging.getLogger(__name__)

SINGLE = re.compile(r"(?<![`:\w])`([^`\n]+)`(?![`_\w])")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", link_names)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("missing-reference", show_without_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def link_names(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn each name of a docstring into a reference; warn of those that Python cannot find."""

    def reference(match: re.Match[str]) -> str:
        path = find(match[1], name, obj) if IDENTIFIER.fullmatch(match[1]) else None
        if path is None:
            logger.warning("in the docstring of %s: there is no `%s`", name, match[1])
        return f":py:obj:`{match[1]} <{path}>`" if path else f"``{match[1]}``"

    lines[:] = [SINGLE.sub(reference, line) for line in lines]


def read_sections(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Turn ``Args:`` and ``Raises:`` into fields.

    An attribute's docstring is read as a method's, because napoleon would take the words before
    the first colon for its type.
    """
    kind = "method" if what in ("attribute", "data", "property") else what
    lines[:] = GoogleDocstring(lines, Config(), app, kind, name, obj, options).lines()


def find(text: str, owner_name: str, owner: Any) -> str | None:
    """Return the path of what ``text`` means in the docstring of ``owner``.

    Empty if it has no path, as a parameter; None if there is no such thing.
    """
    first, *rest = text.split(".")
    for scope in scopes(owner_name, owner):
        if reachable(scope, [first, *rest]):
            return path_of(scope, [first, *rest])
        if not rest and first in getattr(scope, "__annotations__", {}):
            return ""
    if not rest and (hasattr(builtins, first) or first in parameters(owner)):
        return ""
    return text if imported(text) is not None else None


def scopes(owner_name: str, owner: Any) -> Iterator[Any]:
    """Yield the objects whose members a docstring may name without a path, the nearest first."""
    yield owner
    # The class whose member this is, and the modules of both.
    outer = imported(owner_name.rpartition(".")[0])
    yield outer
    for inner in (owner, outer):
        yield sys.modules.get(getattr(inner, "__module__", None) or "")
    if isinstance(owner, ModuleType):
        yield from (
            value
            for value in vars(owner).values()
            if inspect.isclass(value) and value.__module__ == owner.__name__
        )
    yield semantik_realtime


def path_of(scope: Any, names: list[str]) -> str:
    """Return the whole path of ``names``, read from ``scope``."""
    found = scope
    for name in names:
        found = getattr(found, name)
    if isinstance(found, ModuleType):
        return found.__name__
    if inspect.isclass(found) or inspect.isroutine(found):
        return f"{found.__module__}.{found.__qualname__}"
    home = scope.__name__ if isinstance(scope, ModuleType) else path_of_class(scope)
    return ".".join([home, *names])


def path_of_class(scope: Any) -> str:
    """Return the whole path of a class, or of the class of an object."""
    of = scope if inspect.isclass(scope) or inspect.isroutine(scope) else type(scope)
    return f"{of.__module__}.{of.__qualname__}"


def parameters(owner: Any) -> list[str]:
    """Return the names of the parameters of a function or class."""
    try:
        return list(inspect.signature(owner).parameters)
    except (TypeError, ValueError):
        return []


def reachable(scope: Any, names: list[str]) -> bool:
    """Return True if ``names`` can be read from ``scope``, one after the other."""
    for name in names:
        try:
            scope = getattr(scope, name)
        except AttributeError:
            return False
    return True


def imported(path: str) -> Any:
    """Return the module or object at a whole path; None if there is none."""
    module, names = path, list[str]()
    while module:
        try:
            found = importlib.import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            names.insert(0, last)
            continue
        if not reachable(found, names):
            return None
        for name in names:
            found = getattr(found, name)
        return found
    return None


def show_without_link(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Show a name without a link if it exists but is on no page."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    # mypy checks the names in a signature.
    known = in_signature(node) or hasattr(builtins, target) or imported(target) is not None
    return content if known else None


def in_signature(node: nodes.Element) -> bool:
    """Return True if a reference is part of a signature."""
    parent = node.parent
    while parent is not None:
        if isinstance(parent, desc_signature):
            return True
        parent = parent.parent
    return False
