"""The scripts that ship are those of `launch`, and the shell takes them."""

import subprocess

from eaglepipe.launch.files import slurm_files
from eaglepipe.resources import resource_folder


def test_shipped_scripts_are_those_that_are_rendered() -> None:
    folder = resource_folder("pipelines") / "slurm"
    assert {path.name: path.read_text() for path in folder.iterdir()} == slurm_files()


def test_the_shell_takes_them() -> None:
    for text in slurm_files().values():
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
