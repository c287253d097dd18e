"""Configuration of the documentation, built by `make docs`."""

import contextlib
import io
import os
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive

import stompp_kernels
from stompp_kernels import cli

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
autodoc_inherit_docstrings = False  # torch's docstrings of the methods that a layer overrides say nothing of it
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "stompp_kernels"
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


class CommandHelp(Directive):
    """Shows what `stompp COMMAND --help` prints, so that the page cannot lag behind the program."""

    required_arguments = 1
    width: ClassVar = "88"  # columns, which the page has

    def run(self) -> list[nodes.Node]:
        """Returns the help as a literal block."""
        os.environ["COLUMNS"] = self.width
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([self.arguments[0], "--help"])
        block = nodes.literal_block(printed.getvalue(), printed.getvalue())
        block["language"] = "text"
        return [block]


def setup(app):
    """Registers the directive."""
    app.add_directive("command-help", CommandHelp)
