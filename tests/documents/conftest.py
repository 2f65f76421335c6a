"""What the documents' tests share with those of whole commands."""

from tests.cluster.conftest import corpus, pieces, say, store

__all__ = ["corpus", "pieces", "say", "store"]
