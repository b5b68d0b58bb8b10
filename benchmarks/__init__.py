"""Benchmarks: python -m benchmarks.ops.bench_<op>."""
