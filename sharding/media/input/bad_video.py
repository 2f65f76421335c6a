"""BadVideo: the error of a source video that gives no sample; most are raised in validity.py."""

from __future__ import annotations


class BadVideo(Exception):
    """Raised for a source video that gives no sample. `kind`: one of few words, for counters; `reason`: a sentence."""

    def __init__(self, kind: str, reason: str, detail: str = "") -> None:
        super().__init__(kind, reason, detail)
        self.kind = kind
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason
