"""The measurements: ``python -m bench`` prints one table. What it means: docs/performance.md."""
