"""Detection on cameras, streams and films: sources, the pipeline behind them, outputs and the web view.

Numpy, OpenCV and the standard library; the web view adds aiohttp.
"""
