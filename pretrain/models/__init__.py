"""The networks: the convolutional forms, their batch normalisation, their weights and their counts."""
