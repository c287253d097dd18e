"""Configuration of the documentation, built by `make docs`."""

import stompp_kernels

project = "stompp_kernels"
author = "The stompp_kernels authors"
version = release = stompp_kernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # signatures and the Args sections say it
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "stompp_kernels"
html_show_sourcelink = False
copybutton_prompt_text = "$ "
