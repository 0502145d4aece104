"""The errors that a person can mend, as opposed to the ones that only an engineer can."""


class UserError(Exception):
    """Something the person gave cannot be used.

    The message is one sentence: what is wrong, where, and what to do. `cdisc.main` prints it
    without a traceback and exits with code 2.
    """
