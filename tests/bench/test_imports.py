import subprocess
import sys

MODULES = ("dflash.measure", "memory", "precompute", "read", "step")


def test_benchmarks_are_imported_without_datasets() -> None:
    program = "import sys; sys.modules['datasets'] = None\n" + "\n".join(f"import eaglepipe.bench.{m}" for m in MODULES)
    subprocess.run([sys.executable, "-c", program], check=True)
