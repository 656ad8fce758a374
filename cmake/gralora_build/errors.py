"""The one exception of the build backend."""


class BuildError(Exception):
    """A build that cannot go on; the message says what to do, and is shown without a traceback."""
