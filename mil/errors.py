"""What training raises; callers catch this one."""


class TrainError(ValueError):
    """Training cannot start or go on; the message says what was found and what to change."""
