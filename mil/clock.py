"""Seconds as people read them off a player: 1:07, 1:02:03, 0:04.2."""


def clock(seconds: float, decimals: int = 0) -> str:
    """m:ss, or h:mm:ss from an hour on, with so many decimals, rounded; "-" before a time below 0."""
    units = round(abs(seconds) * 10**decimals)
    whole, part = divmod(units, 10**decimals)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    text = f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    sign = "-" if seconds < 0 and units else ""
    return f"{sign}{text}.{part:0{decimals}d}" if decimals else sign + text


def stretch(start_s: float, stop_s: float) -> str:
    """From when to when, with an en dash; in tenths of a second where it is less than ten."""
    decimals = int(stop_s - start_s < 10)
    return f"{clock(start_s, decimals)}\N{EN DASH}{clock(stop_s, decimals)}"
