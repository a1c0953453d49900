"""Exported files: each exporter runs what it wrote and compares, before it leaves a file behind."""
