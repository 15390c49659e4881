"""eaglepipe: compute a target model once, train any number of EAGLE drafts from the cache."""

__version__ = "0.1.0"
