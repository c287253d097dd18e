"""The commands of setuptools that write metadata and wheels."""

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.dist_info import dist_info

from .build_ext import check_requirements
from .extensions import NUMPY_MODULE


class Wheel(bdist_wheel):
    """A wheel for any Python 3 of a platform: its libraries have no symbol of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        interpreter, abi, platform = super().get_tag()
        libraries = {ext.name for ext in self.distribution.ext_modules or []}
        return (
            ("py3", "none", platform) if libraries and NUMPY_MODULE not in libraries else (interpreter, abi, platform)
        )


class DistInfo(dist_info):
    """pip asks for the metadata first: refuse here, before it downloads another torch."""

    def run(self) -> None:
        if self.distribution.ext_modules:
            check_requirements()
        super().run()
