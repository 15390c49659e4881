"""Everything that a command imports, imported before the first fork; nothing here may start a thread."""

import gc

import tests.preloaded  # noqa: F401

# isort: split
import _strptime  # noqa: F401 - what numpy, pyarrow and matplotlib import at their first use

import matplotlib.backends.backend_agg  # noqa: F401
import numpy.ctypeslib  # noqa: F401
import pandas  # noqa: F401
import pyarrow.compute
import pyarrow.pandas_compat  # noqa: F401

gc.collect()
gc.freeze()
