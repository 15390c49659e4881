"""Caches in object stores: their URLs, the objects behind them, and the bounded folder that holds local copies."""
