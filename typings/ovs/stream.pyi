from typing import Any

class Stream:
    @staticmethod
    def open(name: str) -> tuple[int, Any]: ...
    @staticmethod
    def open_block(error_stream: tuple[int, Any], timeout: int | None = ...) -> tuple[int, Any]: ...
