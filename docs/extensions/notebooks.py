"""Each page with code cells as a notebook to download, with its outputs and its figures in one file."""

import base64
import logging
import mimetypes
import os
import re
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx
from sphinx.util.osutil import ensuredir

FOLDER = "notebooks"

# The kernels' settings, in place of those in the home of whoever builds. Kernels warn that others on this machine could
# listen to them.
_KERNEL_SETTINGS = """
c.IPKernelApp.log_level = 40
c.InlineBackend.figure_formats = {"svg"}
"""


def set_up_kernels(app: Sphinx, config: Any) -> None:
    """Write the settings of the kernels where they will look for them."""
    folder = Path(app.outdir).parent / "ipython"
    ensuredir(folder / "profile_default")
    (folder / "profile_default" / "ipython_kernel_config.py").write_text(_KERNEL_SETTINGS, encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(folder)
    # A line for each page.
    logging.getLogger("traitlets").setLevel(logging.WARNING)


def is_notebook(app: Sphinx, page: str) -> bool:
    """Whether a page has code cells."""
    return "kernelspec" in app.env.metadata.get(page, {})


def portable(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the images of its text attached, and without directives and links to the other pages.

    Parameters
    ----------
    notebook
        A notebook; it is changed.
    folder
        Where its page is, to which the images' paths are relative.
    """
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for name in re.findall(r"!\[[^\]]*\]\(([\w./-]+)\)", cell.source):
            data = base64.b64encode((folder / name).read_bytes()).decode()
            attached = cell.setdefault("attachments", {})
            attached[Path(name).name] = {mimetypes.guess_type(name)[0]: data}
            cell.source = cell.source.replace(f"]({name})", f"](attachment:{Path(name).name})")
        cell.source = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|attachment:)[^)]*\)", r"\1", cell.source)
        # Directives, such as cards and trees of pages, and labels of sections.
        for pattern in (r"^(:{3,}|`{3,})\{.*?^\1$\n?", r"^\([\w-]+\)=\n"):
            cell.source = re.sub(pattern, "", cell.source, flags=re.MULTILINE | re.DOTALL)
    return notebook


def add_link(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the template know where the notebook of the page will be."""
    if is_notebook(app, page):
        context["notebook"] = f"{FOLDER}/{page}.ipynb"


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Write the executed notebooks beside the pages."""
    if exception or app.builder.format != "html":
        return
    executed = Path(app.env.mystnb_config.output_folder)
    for page in filter(lambda page: is_notebook(app, page), app.env.found_docs):
        source = executed / f"{page}.ipynb"
        target = Path(app.outdir) / FOLDER / f"{page}.ipynb"
        ensuredir(target.parent)
        notebook = nbformat.read(source, as_version=4)
        nbformat.write(portable(notebook, Path(app.srcdir, page).parent), target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("config-inited", set_up_kernels)
    app.connect("html-page-context", add_link)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
