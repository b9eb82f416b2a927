"""stub"""


def demo() -> None:
    """D"""
