"""The demo: a residual network on scikit-learn's digits, trained in float and compressed, exported and measured."""

from fxcompress.demo.run import Options as Options
from fxcompress.demo.run import run_demo as run_demo
