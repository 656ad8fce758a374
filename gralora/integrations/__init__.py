"""gralora inside other libraries; each subpackage imports its library, this package none."""
