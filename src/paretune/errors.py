"""The one error class for input that cannot be used."""


class PareError(ValueError):
    """Input that cannot be used: the message names the thing and the way out."""
