"""What the documents' tests share with those of whole commands."""

from tests.cluster.conftest import begun, corpus, pieces, say, store

__all__ = ["begun", "corpus", "pieces", "say", "store"]
