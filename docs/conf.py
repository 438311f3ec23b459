"""Sphinx's settings: `make docs` builds the pages into docs/_build."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "fixntk"
copyright = "the fixntk developers"
release = version = installed_version("fixntk")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "reference",
    "access",
    "mathml",
    "notebooks",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
# The gallery's scripts are the sources of the pages in generated/.
exclude_patterns = ["_build", "plots", "generated/**/*.ipynb"]
sphinx_gallery_conf = {
    "examples_dirs": "plots",
    "gallery_dirs": "generated/plots",
    "backreferences_dir": "generated/uses",
    "doc_module": "fixntk.plots",
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    # Seconds from which a page reports how long its script ran.
    "min_reported_time": 600,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    # A failing script stops the build.
    "only_warn_on_example_error": False,
}
# The cells of a page are run when it is read; one that fails, or writes a warning, fails the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove-warn"
nb_merge_streams = True
# The flags of tests/conftest.py, without most of XLA's optimisations: what the tests have run is compiled already.
xla_flags = "--xla_backend_optimization_level=0"
if installed_version("jaxlib").startswith("0.10."):
    xla_flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", xla_flags)
# tqdm recommends ipywidgets to every kernel. Nothing on the pages moves.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
# What widgets need would be loaded from another host.
nb_ipywidgets_js = {}
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "fixntk"
html_static_path = ["static"]
html_css_files = ["pages.css"]
templates_path = ["templates"]
html_theme_options = {"sidebar_hide_name": False}
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
# $x_i$ in headings and tables too; the mathematics numbers its sections itself.
myst_dmath_allow_labels = True
# One argument a line where a signature is longer than this.
python_maximum_signature_line_length = 80
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    # scikit-learn's, on every estimator.
    "exclude-members": "set_fit_request, set_score_request, set_predict_request",
}
# Attributes of the same name, such as gap, in several classes: the text says whose.
suppress_warnings = ["ref.python"]
numpydoc_show_class_members = False
