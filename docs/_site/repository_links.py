"""Links from a page to a file that is no page: source code, examples, the plugin's README.

On a forge they are relative links, and so they stay. On the site they lead to the file in the
repository (``repository_url``), or to a copy of the file if no repository is known. A link to a
file that does not exist is a warning.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("repository_url", "", "env", types=frozenset({str}))
    # Before Sphinx collects the files that it has to copy.
    app.connect("doctree-read", lead_out_of_the_site, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def lead_out_of_the_site(app: Sphinx, doctree: nodes.document) -> None:
    """Turn the links of one page that lead to a file which is no page of the site."""
    for link in [*doctree.findall(download_reference), *doctree.findall(pending_xref)]:
        if link.get("reftype") != "myst":
            continue
        file, anchor = target_of(app, link)
        if file is None or not file.exists() or app.env.path2doc(file) in app.env.found_docs:
            # A page, an anchor, or nothing: Sphinx resolves it or warns.
            continue
        place = file.relative_to(Path(app.srcdir).parent).as_posix()
        if app.config.repository_url:
            uri = f"{app.config.repository_url}/{place}{anchor}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=False))
        elif file.is_file():
            copied = download_reference("", "", *link.children, reftarget=f"/../{place}")
            link.replace_self(copied)
        else:
            link.replace_self(link.children)


def target_of(app: Sphinx, link: nodes.Element) -> tuple[Path | None, str]:
    """The file that a link of MyST's leads to, and the anchor with its ``#``."""
    if link.get("refdomain") == "doc":
        # MyST takes any Markdown file for a page, and gives its name without the suffix.
        file = Path(app.srcdir, link["reftarget"] + ".md")
        return file, f"#{link['reftargetid']}" if link.get("reftargetid") else ""
    path, hash, anchor = link["reftarget"].partition("#")
    if not path:
        return None, ""
    return Path(app.env.relfn2path(path, app.env.docname)[1]), hash + anchor
