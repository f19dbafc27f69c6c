"""Sphinx: the site that ``make docs`` builds from these pages and the docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

import adaptive_opt

project = "adaptive_opt"
release = adaptive_opt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results"]
myst_heading_anchors = 3
default_role = "literal"

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "model_config",
}
autodoc_type_aliases = {name: name for name in ("Array", "ArrayLike", "Tensors")}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
# Several names may share a description here, and attributes are described by their class alone.
napoleon_custom_sections = [("Args", "params_style"), ("Attributes", "params_style")]
napoleon_use_rtype = False  # what is before a colon there is rarely a type

# Links inside this project must lead somewhere. Those to other projects could not be checked
# without a network, and stay text.
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|exc)", r"(?!adaptive_opt\.).*"),
    ("py:.*", r"(scipy|adaptive_opt\.optim\._lists)\..*"),
]

html_theme = "furo"
html_title = "adaptive_opt"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"


def link_pages_above(app: Any, docname: str, source: list[str]) -> None:
    """The two pages that lie above this folder, by links that work in the repository too."""
    del app, docname
    source[0] = re.sub(
        r"\]\((?:\.\./)+(CONTRIBUTING|CHANGELOG)\.md",
        lambda found: f"](/{found[1].lower()}.md",
        source[0],
    )


def adapt(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """What docstrings here do that Sphinx would read otherwise."""
    del app, name, options
    if what == "data" and lines and lines[0] == (inspect.getdoc(type(of)) or "").split("\n")[0]:
        lines.clear()  # the type's, not its own
    lines[:] = _keep_lines_of_formulae(lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # else what is before a colon in the first line is taken for a type
    if inspect.isclass(of) and issubclass(of, BaseModel):
        lines += _attributes(of)


def _keep_lines_of_formulae(lines: list[str]) -> list[str]:
    """An indented paragraph, or a table, is shown as it is, as in Markdown."""
    kept: list[str] = []
    for line in (f"    {line}" if line.startswith("|") else line for line in lines):
        text = [k for k in kept if k.strip()][-1:]
        plain = text and not text[0].startswith(" ") and not text[0].endswith("::")
        if line.startswith("    ") and plain and not kept[-1].strip():
            kept += ["::", ""]
        kept.append(line)
    return kept


def _attributes(of: type[BaseModel]) -> list[str]:
    """Those that are described where they are declared."""
    described = {k: f.description for k, f in of.model_fields.items() if f.description}
    rows = [f"    {name}: {text}" for name, text in described.items()]
    return ["", "Attributes:", *rows, ""] if rows else []


def shorten(
    app: Any,
    what: str,
    name: str,
    of: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Signatures that can be read; parameters of the study are described one by one."""
    del app, what, name, options
    if inspect.isclass(of) and issubclass(of, BaseModel):
        return "", None
    return signature and (signature.replace("<factory>", "..."), returns)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_pages_above)
    app.connect("autodoc-process-docstring", adapt, priority=1)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
