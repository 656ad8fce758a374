"""Quantised weights of other libraries: what merging needs to read and write them.

A library is imported by its codec alone, and a codec is asked for only when a module of that
library is met.
"""

from gralora.nn.quantisation.codec import Codec
from gralora.nn.quantisation.registry import codec_of

__all__ = ["Codec", "codec_of"]
