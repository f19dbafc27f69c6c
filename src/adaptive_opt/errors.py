"""The error that users see."""


class StudyError(ValueError):
    """An error that the user can correct, in a parameter, a file or a device.

    The message is one sentence with the cause and the remedy. The command line prints it without
    a traceback.
    """
