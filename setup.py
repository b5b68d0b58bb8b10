"""Builds libbitfast.so with CMake against the torch of the build environment and places it inside the package.

CMake options come from the environment variable CMAKE_ARGS, for example CMAKE_ARGS=-DBITFAST_CUDA=OFF.
"""

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        import torch

        build = Path(self.build_temp).resolve()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        options = [f"-DTORCH_ROOT={torch.__path__[0]}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        configure = ["cmake", "-S", str(Path(__file__).parent), "-B", str(build), "-G", "Ninja", *options]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


class PlatformWheel(bdist_wheel):
    """The library knows no Python: one wheel serves every version of it."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("bitfast.libbitfast", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
