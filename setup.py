"""Puts the folders that ship with the suite into the wheel (dual_lora/shipped.py); the rest is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "experiments", "results/published", "results/benchmarks/gpu_hours.json")


class BuildWithShippedFolders(build_py):
    """A wheel holds them inside the package; an editable install uses those of the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                place = Path(self.build_lib) / "dual_lora" / "suite" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if Path(name).is_file():
                    shutil.copyfile(name, place)
                else:  # Hydra's group of experiments is a link: copied as what it links to.
                    shutil.copytree(name, place, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShippedFolders})
