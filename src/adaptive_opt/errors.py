"""The one error that is meant for the user rather than for the developer."""


class StudyError(ValueError):
    """Something the user can mend: a parameter, a file, a device.

    The message is a sentence that names the culprit and the remedy; the command line
    prints it without a traceback.
    """
