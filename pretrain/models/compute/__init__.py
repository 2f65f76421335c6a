"""How a network computes: compute paths, batch normalisation and its kernels, weights cast at once."""
