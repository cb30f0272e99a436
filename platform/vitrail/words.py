"""Counts and times as people read them."""


def plural(count: int, word: str) -> str:
    """`1 error`, `1,200 errors`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05`, `2 d 03`."""
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02}" if hours < 48 else f"{hours // 24} d {hours % 24:02}"
