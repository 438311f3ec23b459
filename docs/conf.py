"""Sphinx's settings: `make docs` builds the pages into docs/_build."""

from importlib.metadata import version as installed_version

project = "fixntk"
copyright = "the fixntk developers"
release = version = installed_version("fixntk")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
# The gallery's scripts are the sources of the pages in generated/.
exclude_patterns = ["_build", "plots"]
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
html_theme = "furo"
html_title = "fixntk"
html_theme_options = {"sidebar_hide_name": False}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# $x_i$ in headings and tables too; the mathematics numbers its sections itself.
myst_dmath_allow_labels = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    # scikit-learn's, on every estimator.
    "exclude-members": "set_fit_request, set_score_request, set_predict_request",
}
# Attributes of the same name, such as gap, in several classes: the text says whose.
suppress_warnings = ["ref.python"]
numpydoc_show_class_members = False
