"""Errors that tell a user what was wrong and what would be right."""


class DensePerceptionError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(DensePerceptionError):
    """An image, a file or a message does not have the form that is needed."""


class SettingError(DensePerceptionError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class WeightsError(DensePerceptionError):
    """A weights file is missing, damaged, or does not fit its network."""
