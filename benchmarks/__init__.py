"""Benchmarks: ``python -m benchmarks`` times alignjax beside a peer in the same run."""
