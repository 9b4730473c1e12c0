"""edgekd: from a large transformer to a small, quantized, verified and measured artefact on the edge."""

__version__ = "0.1.0"
